"""Draws a transcript: final entries go to the scrollback once, the open one is redrawn below them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TypeAlias

from rich.console import Console, Group, RenderableType
from rich.segment import Segment, SegmentLines
from rich.text import Text

from ..events import Event
from .markdown import AnswerMarkdown, newest
from .transcript import Answer, Entry, Note, Reading, Thought, Transcript

REDRAW_S = 0.05
"""What is open is drawn this often at the most, and seldomer where drawing costs more than MOST_SHARE of the
time: the model needs the CPU as well."""
MOST_SHARE = 0.02
SLOWEST_REDRAW_S = 0.25

Line: TypeAlias = list[Segment]
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
    console.print(SegmentLines(_lines(console, render(entry, looks)), new_lines=True))
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
        self._draw_at = 0.0

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
        if entries or (self._live and self._clock() >= self._draw_at):
            self._draw(entries)

    def _draw(self, entries: list[Entry]) -> None:
        """Replace the open entry by final ones and the new open one, in one write."""
        began = time.thread_time()
        with self._console.capture() as drawn:
            for entry in entries:
                show(self._console, entry, self._looks)
            lines = self._open_lines() if self._live else []
            self._console.print(SegmentLines(lines, new_lines=True), end="")
        self._write(self._erase() + drawn.get())
        self._drawn = [sum(segment.cell_length for segment in line) for line in lines]
        pause = (time.thread_time() - began) / MOST_SHARE
        self._draw_at = self._clock() + min(max(pause, REDRAW_S), SLOWEST_REDRAW_S)

    def _open_lines(self) -> list[Line]:
        entry = self.transcript.open
        if entry is None:
            return []
        room = max(1, self._console.size.height - 2)
        if isinstance(entry, Thought):
            rows = max(1, min(room - 1, _OPEN_THOUGHT_LINES))
            text = _lines(self._console, Text(newest(entry.text, rows), "dim italic"))
            return [*_lines(self._console, Text("▾ Thinking", style="dim")), *text[-rows:]]
        if isinstance(entry, Answer):
            entry = Answer(newest(entry.source, room))
        return _lines(self._console, render(entry, self._looks))[-room:]

    def _erase(self) -> str:
        """Up to where the open entry begins. A terminal that was made narrower has wrapped its lines."""
        width = max(1, self._console.size.width)
        rows = sum(max(1, -(-cells // width)) for cells in self._drawn)
        return f"\x1b[{rows}A\r\x1b[J" if rows else ""

    def _write(self, text: str) -> None:
        self._console.file.write(f"{_BEGIN}{text}{_END}" if self._live else text)
        self._console.file.flush()


def _lines(console: Console, inner: RenderableType) -> list[Line]:
    """Its lines, without blank ones around them and blanks after them."""
    options = console.options.update(height=None)
    lines = [_rstrip(line) for line in console.render_lines(inner, options, pad=False)]
    while lines and not lines[-1]:
        lines.pop()
    while lines and not lines[0]:
        lines.pop(0)
    return lines


def _rstrip(line: Line) -> Line:
    """Without the blanks that only fill the width: they would end up in what a person copies."""
    line = list(line)
    while line and not line[-1].text.strip():
        line.pop()
    if line:
        line[-1] = Segment(line[-1].text.rstrip(), *line[-1][1:])
    return line
