"""Draws a transcript: final entries go to the scrollback once, the open one is redrawn below them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.text import Text

from ..events import Event
from .markdown import AnswerMarkdown, newest
from .transcript import Answer, Entry, Note, Reading, Thought, Transcript

_REDRAW_S = 0.05
_STYLES = {"quiet": "dim", "call": "cyan", "warning": "yellow"}
_OPEN_THOUGHT_LINES = 6
_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"  # synchronized output: the terminal shows it in one go


def make_console() -> Console:
    """The terminal, with nothing but what we ask for drawn on it."""
    return Console(highlight=False, markup=False, emoji=False)


def is_plain(console: Console) -> bool:
    """Whether the terminal can only take lines of text."""
    return console.is_dumb_terminal or not console.is_terminal


@dataclass(frozen=True, slots=True)
class Looks:
    """What the person chose to see."""

    show_thinking: bool = False
    """Thoughts are open, not folded to one line."""
    markdown: bool = True
    """Answers are drawn, not shown as their source."""


def render(entry: Entry, looks: Looks) -> RenderableType:
    """How one entry looks."""
    match entry:
        case Answer(source):
            return AnswerMarkdown(source) if looks.markdown else Text(source)
        case Thought(text, summary):
            if not looks.show_thinking:
                return Text(f"▸ {summary}", style="dim")
            return Group(Text(f"▾ {summary}", style="dim"), Text(text, style="dim italic"))
        case Note(text, tone):
            return Text(text, style=_STYLES[tone])
        case Reading(done, total):
            return Text(f"Reading the prompt: {done:,} of {total:,} tokens", style="dim")


def show(console: Console, entry: Entry, looks: Looks) -> None:
    """Print one final entry and the blank line below it."""
    console.print(_Lines(render(entry, looks)))
    console.print()


class Screen:
    """One turn on the terminal: a context in which events are fed. Ends with what is open made final."""

    def __init__(
        self, console: Console, looks: Looks, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.transcript = Transcript()
        self._console = console
        self._looks = looks
        self._clock = clock
        self._live = not is_plain(console)
        self._drawn: list[int] = []  # widths of the lines of the open entry, as they stand on the terminal
        self._drawn_at = 0.0

    def __enter__(self) -> Screen:
        if self._live:
            self._write(_HIDE_CURSOR)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._draw(self.transcript.flush())
        finally:
            if self._live:
                self._write(_SHOW_CURSOR)

    def feed(self, event: Event) -> None:
        entries = self.transcript.feed(event)
        if entries or (self._live and self._clock() - self._drawn_at >= _REDRAW_S):
            self._draw(entries)

    def _draw(self, entries: list[Entry]) -> None:
        """Replace the open entry by final ones and the new open one, in one write."""
        with self._console.capture() as above:
            for entry in entries:
                show(self._console, entry, self._looks)
        lines = self._open_lines() if self._live else []
        self._write(self._erase() + above.get() + "".join(f"{line}\n" for line in lines))
        self._drawn = [cell_len(Text.from_ansi(line).plain) for line in lines]
        self._drawn_at = self._clock()

    def _open_lines(self) -> list[str]:
        entry = self.transcript.open
        if entry is None:
            return []
        room = max(1, self._console.size.height - 2)
        if isinstance(entry, Thought):
            rows = min(room - 1, _OPEN_THOUGHT_LINES)
            text = _Lines(Text(newest(entry.text, rows), "dim italic"), rows)
            part: RenderableType = Group(Text("▾ Thinking", style="dim"), text)
        elif isinstance(entry, Answer):
            part = _Lines(render(Answer(newest(entry.source, room)), self._looks), room)
        else:
            part = render(entry, self._looks)
        with self._console.capture() as capture:
            self._console.print(part)
        return capture.get().split("\n")[:-1]

    def _erase(self) -> str:
        """Up to where the open entry begins. A terminal that was made narrower has wrapped its lines."""
        width = max(1, self._console.size.width)
        rows = sum(max(1, -(-cells // width)) for cells in self._drawn)
        return f"\x1b[{rows}A\r\x1b[J" if rows else ""

    def _write(self, text: str) -> None:
        self._console.file.write(f"{_BEGIN}{text}{_END}" if self._live else text)
        self._console.file.flush()


class _Lines:
    """The lines of something, without blank ones around it and blanks after them; at most the last `most`."""

    def __init__(self, inner: RenderableType, most: int | None = None) -> None:
        self._inner = inner
        self._most = most

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = [
            _rstrip(line)
            for line in console.render_lines(self._inner, options.update(height=None), pad=False)
        ]
        while lines and not lines[-1]:
            lines.pop()
        while lines and not lines[0]:
            lines.pop(0)
        if self._most is not None:
            lines = lines[-max(1, self._most) :]
        for line in lines:
            yield from line
            yield Segment.line()


def _rstrip(line: list[Segment]) -> list[Segment]:
    """Without the blanks that only fill the width: they would end up in what a person copies."""
    line = list(line)
    while line and not line[-1].text.strip():
        line.pop()
    if line:
        line[-1] = Segment(line[-1].text.rstrip(), *line[-1][1:])
    return line
