"""What is said of a turn, as short as it can be read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from glmchat.events import ThinkingDone, Timing, TurnDone
from glmchat.terminal.wording import stats_text, thought_text

from ..scripted import turn


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


@pytest.mark.parametrize(("seconds", "said"), [(12.34, "12.3 s"), (0.1, "0.1 s"), (0.04, "40 ms")])
def test_time_of_a_thought(seconds: float, said: str) -> None:
    assert thought_text(ThinkingDone(seconds, 3)) == f"Thought for {said} · 3 tokens"
