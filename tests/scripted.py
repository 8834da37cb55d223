"""A queue-fed engine: each turn plays the next script, so that whole outputs can be asserted."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from glmchat.engine.base import GenerationOptions, ModelInfo
from glmchat.events import (
    AnswerDelta,
    Event,
    PromptReady,
    ThinkingDelta,
    ThinkingDone,
    Timing,
    ToolCallReady,
    TurnDone,
    Usage,
)
from glmchat.glm.encode import Prompt
from glmchat.messages import Conversation, Message, ToolCall

Script = Iterable[Event | Exception]


def turn(
    answer: str = "",
    *,
    thinking: str = "",
    calls: Sequence[ToolCall] = (),
    reason: Any = "stop",
) -> list[Event]:
    """The events of one turn, a delta for each word."""
    events: list[Event] = [PromptReady(8)]
    if thinking:
        events += [ThinkingDelta(word, number) for number, word in enumerate(_words(thinking), 1)]
        events.append(ThinkingDone(1.5, len(thinking.split())))
    events += [AnswerDelta(word) for word in _words(answer)]
    events += [ToolCallReady(call) for call in calls]
    message = Message("assistant", answer, thinking, tuple(calls), interrupted=reason == "interrupted")
    tokens = len(answer.split()) + len(thinking.split())
    usage = Usage(8, 0, tokens, len(thinking.split()))
    events.append(TurnDone(message, reason, usage, Timing(0.25, 50.0, 1.0)))
    return events


def _words(text: str) -> list[str]:
    return [part for part in text.replace(" ", " \0").split("\0") if part]


class ScriptedEngine:
    """Implements Engine. `seen` holds the conversation, tools and options of each turn, as they were."""

    def __init__(self, *scripts: Script, delay: float = 0.0) -> None:
        self.scripts = [list(script) for script in scripts]
        self.seen: list[tuple[Conversation, Sequence[dict[str, Any]], GenerationOptions | None]] = []
        self.info = ModelInfo("scripted", "cpu", load_s=0.5, context_length=20)
        self.delay = delay
        self.closed = False
        self.abandoned = 0

    def generate(
        self,
        conversation: Conversation,
        *,
        tools: Sequence[dict[str, Any]] = (),
        options: GenerationOptions | None = None,
        cancel: threading.Event | None = None,
    ) -> Iterator[Event]:
        self.seen.append((conversation.copy(), tools, options))
        texts: dict[type, str] = {ThinkingDelta: "", AnswerDelta: ""}
        calls: list[ToolCall] = []
        whole = False
        try:
            for event in self.scripts.pop(0):
                if cancel is not None and cancel.is_set():
                    partial = Message(
                        "assistant",
                        texts[AnswerDelta].strip(),
                        texts[ThinkingDelta],
                        tuple(calls),
                        interrupted=True,
                    )
                    yield TurnDone(partial, "interrupted", Usage(8, 0, 3), Timing(total_s=0.1))
                    whole = True
                    return
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, ThinkingDelta | AnswerDelta):
                    texts[type(event)] += event.text
                elif isinstance(event, ToolCallReady):
                    calls.append(replace(event.call))
                yield event
                time.sleep(self.delay)
            whole = True
        finally:
            self.abandoned += not whole

    def prepare(self, *_: Any, **__: Any) -> None:
        pass

    def render(
        self,
        conversation: Conversation,
        *,
        tools: Sequence[dict[str, Any]] = (),
        options: GenerationOptions | None = None,
    ) -> Prompt:
        text = "".join(f"<|{m.role}|>{m.content}" for m in conversation)
        return Prompt(text, list(range(len(text.split()))), thinking_open=False)

    def close(self) -> None:
        self.closed = True
