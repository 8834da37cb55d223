from __future__ import annotations

import pytest
from rich.console import Console

from glmchat.events import (
    AnswerDelta,
    Event,
    PrefillProgress,
    PromptReady,
    ThinkingDelta,
    ThinkingDone,
    ToolCallBroken,
    TurnDone,
    Usage,
)
from glmchat.messages import Message, ToolCall
from glmchat.terminal.screen import Looks, Screen
from glmchat.terminal.transcript import (
    Answer,
    Call,
    Entry,
    Note,
    Open,
    Reading,
    Thinking,
    Thought,
    Transcript,
)

from ..scripted import turn


def play(events: list[Event]) -> list[Entry]:
    transcript = Transcript()
    return [entry for event in events for entry in transcript.feed(event)]


def test_a_whole_turn() -> None:
    assert play(turn("# Hi\nall good\n\n- a\n- b", thinking="let me see")) == [
        Thought("let me see", "Thought for 1.5 s · 3 tokens"),
        Answer("# Hi"),
        Answer("all good"),
        Answer("- a\n- b"),
        Note("11 tokens · 50.0 tokens/s · first token 0.25 s"),
    ]


def test_what_is_open_at_each_step() -> None:
    transcript = Transcript()
    steps: list[tuple[Event, Open | None]] = [
        (PromptReady(100, 40), Reading(40, 100)),
        (PrefillProgress(72, 100), Reading(72, 100)),
        (ThinkingDelta("\nhm", 1), Thinking("\nhm", 1)),
        (ThinkingDone(2.0, 1), None),
        (AnswerDelta("yes"), Answer("yes")),
        (AnswerDelta("\n\n- no\n"), Answer("- no\n")),
    ]
    for event, now_open in steps:
        transcript.feed(event)
        assert transcript.open == now_open
    assert transcript.flush() == [Answer("- no")]
    assert transcript.open is None


def test_an_empty_think_block_leaves_no_trace() -> None:
    assert play([ThinkingDelta("\n"), ThinkingDone(0.0, 0), AnswerDelta("x"), *turn("")[-1:]])[:1] == [
        Answer("x")
    ]


@pytest.mark.parametrize(
    ("reason", "notes"),
    [
        ("interrupted", ["stopped"]),
        ("length", ["The answer stopped at the token limit; raise --max-tokens."]),
        (
            "context",
            ["The answer stopped because the model's context is full; start anew, or with a shorter prompt."],
        ),
        ("stop", []),
    ],
)
def test_how_a_turn_ended(reason: str, notes: list[str]) -> None:
    done = TurnDone(Message("assistant", ""), reason, Usage(1, 0, 0))  # type: ignore[arg-type]
    assert play([done]) == [Note(text, "warning") for text in notes]


def test_stopped_while_thinking_folds_the_thought() -> None:
    entries = play(
        [ThinkingDelta("half a th"), TurnDone(Message("assistant", interrupted=True), "interrupted")]
    )
    assert entries == [Thought("half a th", "Thought, unfinished"), Note("stopped", "warning")]


def test_calls_are_shown_after_the_text_before_them() -> None:
    call = ToolCall("get_weather", {"city": "Zür\x1b[2Jich", "days": 2})
    entries = play([*turn("I look.", calls=[call])[:-1], ToolCallBroken("<tool_call>\x07")])
    assert entries == [
        Answer("I look."),
        Call('get_weather(city="Zür\\u001b[2Jich", days=2)', "city: Zür␛[2Jich\ndays: 2"),
        Note("a broken tool call, not run: <tool_call>␇", "warning"),
    ]


def test_untrusted_text_is_made_safe_even_across_deltas() -> None:
    entries = play([ThinkingDelta("a\x1b"), ThinkingDelta("[2Jb\r"), AnswerDelta("c\x9b"), *turn("")[-1:]])
    assert entries == [Thought("a␛[2Jb␍", "Thought, unfinished"), Answer("c<U+009B>")]


def drawn(events: list[Event], **looks: bool) -> str:
    """As lines of text."""
    screen = Screen(Console(width=50, highlight=False, markup=False), Looks(**looks))
    for event in events:
        screen.feed(event)
    screen.end()
    return screen.added()


def test_drawn_without_a_terminal_it_is_lines_of_text() -> None:
    script = turn("Hello **you**", thinking="first\nsecond")
    assert drawn(script) == (
        "▸ Thought for 1.5 s · 2 tokens\n\nHello you\n\n4 tokens · 50.0 tokens/s · first token 0.25 s\n\n"
    )
    assert "▾ Thought for 1.5 s · 2 tokens\nfirst\nsecond\n\nHello" in drawn(script, unfolded=True)


def test_an_abandoned_turn_still_shows_what_came() -> None:
    assert drawn([AnswerDelta("so far")]) == "so far\n\n"
