"""The front end of pipes: the answer on stdout as it comes, and nothing else there.

To a pipe or a file the answer goes unchanged; to a terminal it goes through the sanitiser. It always
ends in a newline, as text files do. Thinking, notes and errors go to stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TextIO

from ..chat import Chat
from ..errors import EXIT_INTERRUPTED, EXIT_LENGTH, EXIT_OK
from ..events import (
    AnswerDelta,
    FinishReason,
    RoundDone,
    ThinkingDelta,
    ThinkingDone,
    ToolCallBroken,
    ToolDone,
    ToolServerFailed,
    ToolStarted,
    TurnDone,
)
from ..messages import ToolCall
from ..tools.approve import NOBODY
from .interrupt import stops_on_ctrl_c
from .sanitize import Sanitizer
from .say import say
from .wording import call_text, endless_text, server_text, stopped_text

EMPTY = "The model ended without an answer; ask again, or see with --show-thinking what it thought."

EXIT_CODES: dict[FinishReason, int] = {
    "stop": EXIT_OK,
    "tool_calls": EXIT_OK,
    "tool_limit": EXIT_LENGTH,
    "length": EXIT_LENGTH,
    "context": EXIT_LENGTH,
    "interrupted": EXIT_INTERRUPTED,
}


def run(chat: Chat, prompt: str, *, show_thinking: bool = False) -> int:
    """Answer one prompt and return the exit code."""
    answer = _Stream(sys.stdout)
    notes = _Notes(show_thinking)
    reason: FinishReason = "interrupted"
    if text := endless_text(chat.engine.info):
        notes.line(text)
    try:
        with stops_on_ctrl_c(chat), closing(chat.send(prompt)) as turn:
            for event in turn:
                match event:
                    case AnswerDelta(text):
                        answer.write(text)
                    case TurnDone(finish_reason=finish_reason, message=message):
                        reason = finish_reason
                        if reason == "tool_calls":
                            answer.finish()
                            notes.not_run(message.tool_calls)
                        elif reason == "stop" and not message.content.strip():
                            notes.line(EMPTY)
                    case RoundDone():
                        answer.finish()
                    case _:
                        notes.add(event)
    finally:
        answer.finish()
    if text := stopped_text(reason):
        notes.line(text)
    return EXIT_CODES[reason]


class _Stream:
    """Text written as it comes, without the blank lines around it, with one newline at its end."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._sanitizer = Sanitizer() if out.isatty() else None
        self._held = ""  # white space that is only written when more text follows
        self._begun = False

    def write(self, text: str) -> None:
        if self._sanitizer:
            text = self._sanitizer.feed(text)
        text = self._held + text
        if not self._begun:
            text = text.lstrip()
        body = text.rstrip()
        self._held = text[len(body) :]
        if body:
            self._begun = True
            self._out.write(body)
            self._out.flush()

    def finish(self) -> None:
        if self._sanitizer:
            self.write(self._sanitizer.flush())
        if self._begun:
            self._out.write("\n")
            self._out.flush()
        self._begun, self._held = False, ""


class _Notes:
    """What a person may want to see beside the answer, on stderr."""

    def __init__(self, show_thinking: bool) -> None:
        styled = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._dim, self._plain = ("\x1b[2m", "\x1b[0m") if styled else ("", "")
        self._thinking = _Stream(sys.stderr) if show_thinking else None

    def add(self, event: object) -> None:
        match event:
            case ThinkingDelta(text) if self._thinking:
                with self._told():
                    sys.stderr.write(self._dim)
                    self._thinking.write(text)
                    sys.stderr.write(self._plain)
            case ThinkingDone():
                self._finish()
            case ToolServerFailed():
                self.line(server_text(event))
            case ToolStarted(call):
                self.line(f"runs {call_text(call)}")
            case ToolDone(ok=False):
                name, note = event.call.name, event.note or "failed"
                more = f"; --allow {name} would, or --yes" if note.endswith(NOBODY) else ""
                self.line(f"{name}: {note}{more}")
            case ToolCallBroken(raw):
                self.line(f"the model wrote a broken tool call: {raw!r}")

    def not_run(self, calls: Sequence[ToolCall]) -> None:
        for call in calls:
            self.line(f"the model calls {call_text(call)}, which is not declared to be run.")

    def line(self, text: str) -> None:
        self._finish()
        say(text)

    def _finish(self) -> None:
        if self._thinking:
            with self._told():
                self._thinking.finish()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Within, thoughts are written; where that fails they no longer are: the answer is not for stderr."""
        try:
            yield
        except OSError:
            self._thinking = None
            # What is buffered would fail once more when the program ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
