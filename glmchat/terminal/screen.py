"""Draws a transcript: final entries go to the scrollback once, the open one is redrawn below them."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.text import Text

from ..events import Event
from .markdown import AnswerMarkdown
from .transcript import Answer, Entry, Note, Reading, Thought, Transcript

_REDRAW_S = 0.05
_STYLES = {"quiet": "dim", "call": "cyan", "warning": "yellow"}
_OPEN_THOUGHT_LINES = 6


def make_console() -> Console:
    """The terminal, with nothing but what we ask for drawn on it."""
    return Console(highlight=False, markup=False, emoji=False)


def is_plain(console: Console) -> bool:
    """Whether the terminal can only take lines of text."""
    return console.is_dumb_terminal or not console.is_terminal


def render(entry: Entry, *, show_thinking: bool = False) -> RenderableType:
    """How one final entry looks. A thought is folded to one line unless `show_thinking`."""
    match entry:
        case Answer(source):
            return AnswerMarkdown(source)
        case Thought(text, summary):
            if not show_thinking:
                return Text(f"▸ {summary}", style="dim")
            return Group(Text(f"▾ {summary}", style="dim"), Text(text, style="dim italic"))
        case Note(text, tone):
            return Text(text, style=_STYLES[tone])
        case Reading(done, total):
            return Text(f"Reading the prompt: {done:,} of {total:,} tokens", style="dim")


def show(console: Console, entry: Entry, *, show_thinking: bool = False) -> None:
    """Print one final entry and the blank line below it."""
    console.print(_Lines(render(entry, show_thinking=show_thinking)))
    console.print()


class Screen:
    """One turn on the terminal: a context in which events are fed. Ends with what is open made final."""

    def __init__(self, console: Console, *, show_thinking: bool = False) -> None:
        self.transcript = Transcript()
        self._console = console
        self._show_thinking = show_thinking
        self._live: Live | None = None
        self._drawn_at = 0.0
        if not is_plain(console):
            self._live = Live(console=console, transient=True, auto_refresh=False)

    def __enter__(self) -> Screen:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._commit(self.transcript.flush())
        finally:
            if self._live:
                self._live.stop()

    def feed(self, event: Event) -> None:
        self._commit(self.transcript.feed(event))

    def _commit(self, entries: list[Entry]) -> None:
        now = time.monotonic()
        if self._live and (entries or now - self._drawn_at >= _REDRAW_S):
            # The live part changes first: printing above it redraws it.
            self._live.update(self._open_part(), refresh=not entries)
            self._drawn_at = now
        for entry in entries:
            show(self._console, entry, show_thinking=self._show_thinking)

    def _open_part(self) -> RenderableType:
        entry = self.transcript.open
        if entry is None:
            return Text()
        if isinstance(entry, Thought):
            text = _Lines(Text(entry.text, "dim italic"), _OPEN_THOUGHT_LINES)
            return Group(Text("▾ Thinking", style="dim"), text)
        return _Lines(render(entry), self._console.size.height - 3)


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
