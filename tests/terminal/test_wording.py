"""What is said of a turn, as short as it can be read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from glmchat.chat import Chat
from glmchat.events import ThinkingDone, Timing, TurnDone
from glmchat.terminal import plain
from glmchat.terminal.wording import stats_text, thought_text

from ..scripted import ScriptedEngine, turn


@pytest.mark.parametrize(
    ("ttft_s", "speed", "said"),
    [
        (12.344, 3.14, "3.14 tokens/s · first token 12.34 s"),
        (0.35, 50.04, "50.0 tokens/s · first token 0.35 s"),
        (0.0042, 1234.5, "1,234 tokens/s · first token 4 ms"),
    ],
)
def test_times_and_speeds(ttft_s: float, speed: float, said: str) -> None:
    *_, done = turn("hello")
    assert isinstance(done, TurnDone)
    assert said in stats_text(replace(done, timing=Timing(ttft_s, speed, 1.0)))


@pytest.mark.parametrize("ends", [True, False])
def test_a_checkpoint_without_an_end_is_told_in_a_pipe(
    ends: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = ScriptedEngine(turn("hello"))
    engine.info = replace(engine.info, ends=ends)
    assert plain.run(Chat(engine), "hi") == 0
    told = capsys.readouterr()
    assert told.out == "hello\n"
    assert told.err.count("\n") == (not ends)
    assert ("add eos_token_id" in told.err) is not ends


@pytest.mark.parametrize(("seconds", "said"), [(12.34, "12.3 s"), (0.1, "0.1 s"), (0.04, "40 ms")])
def test_time_of_a_thought(seconds: float, said: str) -> None:
    assert thought_text(ThinkingDone(seconds, 3)) == f"Thought for {said} · 3 tokens"
