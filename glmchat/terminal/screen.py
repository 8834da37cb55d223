"""Draws the conversation: what is final goes to the scrollback once, what is open is redrawn below it.

Every entry is kept as a value, so that all of it can be drawn anew: thoughts opened, or for another width.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.segment import Segment, SegmentLines
from rich.styled import Styled
from rich.text import Text

from ..events import Event, LoadProgress, ToolServersStarting
from .blocks import blocks, importing, newest
from .early import PROMPT
from .progress import amount_text
from .transcript import (
    Answer,
    Call,
    Entry,
    Note,
    Reading,
    Running,
    Said,
    Thinking,
    Thought,
    Transcript,
)
from .wording import count

REDRAW_S = 1 / 30
"""What is open is drawn this often at the most, and seldomer where drawing costs more than MOST_SHARE of the
time: the model needs the CPU as well."""
MOST_SHARE = 0.01
SLOWEST_REDRAW_S = 0.3


class Line(NamedTuple):
    """A row as it is written to the terminal, styles and all, and its width in cells."""

    text: str
    width: int


_BLANK = Line("", 0)
_STYLES = {"plain": "", "quiet": "dim", "warning": "yellow", "fault": "red"}
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
SPIN_S = 0.1
"""How long each of its pictures stands."""
_OPEN_THOUGHT_LINES = 6
_FAILURE_LINES = 8
_AGAIN = "── all of it again, from the beginning ──"


def make_console() -> Console:
    """The terminal, with nothing but what we ask for drawn on it.

    Its size is what it has now. Rich would believe exported COLUMNS and LINES, which a resize leaves as they
    were.
    """
    environ = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    return Console(highlight=False, markup=False, emoji=False, _environ=environ)


@dataclass(frozen=True, slots=True)
class Looks:
    """What the person chose to see."""

    unfolded: bool = False
    """Thoughts and tool calls are open, not folded to one line each."""
    markdown: bool = True
    """Answers are drawn, not shown as their source."""


def render(entry: Entry, looks: Looks) -> RenderableType:
    """How one entry looks."""
    match entry:
        case Said(text):
            lines = text.split("\n")
            return Text(
                "\n".join([PROMPT + lines[0], *(" " * len(PROMPT) + line for line in lines[1:])]), "bold"
            )
        case Answer(source):
            return load_markdown()(source) if looks.markdown else Text(source)
        case Thought(text, summary):
            if not looks.unfolded:
                return Text(f"▸ {summary}", style="dim")
            drawn: list[RenderableType] = [Text(f"▾ {summary}", style="dim")]
            for block in blocks(text) if looks.markdown else ():
                drawn += [Styled(load_markdown()(block), "dim"), Text()]
            return Group(*drawn) if looks.markdown else Group(*drawn, Text(text, "dim"))
        case Call():
            return _render_call(entry, looks)
        case Note(text, tone):
            return Text(text, style=_STYLES[tone])


def load_markdown() -> Callable[[str], RenderableType]:
    """What draws an answer: much to import, and not needed before there is one."""
    with importing:
        from .markdown import AnswerMarkdown
    return AnswerMarkdown


def _render_call(call: Call, looks: Looks) -> RenderableType:
    """Folded to a line; a failed one shows the end of its result even so."""
    colour = "red" if call.failed else "cyan"
    outcome = call.outcome if call.outcome[:1] in "✓✗" else f"· {call.outcome}"
    if looks.unfolded:
        name = call.summary.split("(")[0]
        head, inner = f"▾ ⚙ {name} {outcome}", [call.arguments, call.result]
    else:
        failure = "\n".join(call.result.split("\n")[-_FAILURE_LINES:])
        head, inner = f"▸ ⚙ {call.summary} {outcome}", [failure] * call.failed
    parts = [Padding(Text(text, "dim"), (0, 0, 0, 2)) for text in inner if text]
    return Group(Text(head, colour), *parts)


class Screen:
    """All that was said, and the turn that runs.

    `frame`, `anew` and `reflowed` give what has to be written to show the newest state, from the row below
    what was written before. They are told how many rows there are for it on the terminal.
    """

    def __init__(
        self, console: Console, looks: Looks, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.looks = looks
        self.transcript = Transcript()
        self.draw_at = 0.0
        """When the next frame is due, by the clock."""
        self._console = console
        self._clock = clock
        self._open_kind, self._open_since = "", 0.0  # of what is open, and when it was first drawn
        self._entries: list[Entry] = []
        self._shown = 0  # of the entries
        self._final: list[
            int
        ] = []  # the width of each line that stands on the terminal, as far as it matters
        self._scrolled = False  # there are more of them, out of sight
        self._drawn: dict[tuple[Entry, bool], list[Line]] = {}  # what drawing gave, for this width
        self._drawn_for = 0
        self._open: list[int] = []  # of what is open

    def begin(self) -> None:
        """Another turn begins."""
        self.transcript = Transcript()

    def add(self, *entries: Entry) -> None:
        self._entries += entries

    def feed(self, event: Event) -> None:
        self.add(*self.transcript.feed(event))

    def end(self) -> None:
        """The turn is over: what is open becomes final."""
        self.add(*self.transcript.flush())

    @property
    def spins(self) -> bool:
        """Something is shown that turns with the time."""
        return isinstance(
            self.transcript.open, LoadProgress | ToolServersStarting | Reading | Thinking | Running
        )

    def drawn(self, cpu_s: float) -> None:
        """A frame was drawn, which took so much of the CPU's time."""
        self.draw_at = self._clock() + min(max(cpu_s / MOST_SHARE, REDRAW_S), SLOWEST_REDRAW_S)

    def added(self) -> str:
        """The final entries that were not shown yet, for a terminal on which nothing is redrawn."""
        return self._draw(self._entries[self._shown :])

    def forget_rows(self) -> None:
        """The terminal was cleared."""
        self._final, self._open, self._scrolled = [], [], False

    def leave_rows(self) -> None:
        """Something else has been written below them: they stay as they are."""
        self._final, self._open, self._scrolled = [], [], True

    def frame(self, room: int) -> str:
        """What is new, in the place of what was open."""
        return self._up(self._open) + self._draw(self._entries[self._shown :]) + self._draw_open(room)

    def anew(self, room: int) -> str:
        """All of it, in its own place if that is still on the screen. What has scrolled away cannot be taken
        back: then it stands in the scrollback twice, as it was and, below a line, as it is."""
        written = [*self._final, *self._open]
        again: list[Entry] = [Note(_AGAIN)] if self._scrolled or self._rows(written) > room else []
        self._final, self._scrolled = [], False
        return self._up(written) + self._draw([*again, *self._entries]) + self._draw_open(room)

    def reflowed(self, room: int) -> str:
        """As much of the end as can be seen, for a terminal of another size."""
        up = self._up([*self._final, *self._open])
        opened = self._open_block(room)
        final: list[Line] = []
        at = len(self._entries)
        while at and len(final) + len(opened) < room:
            at -= 1
            final = [*self._lines_of(self._entries[at]), *final]
        seen = final[max(0, len(final) + len(opened) - room) :]
        self._scrolled = self._scrolled or at > 0 or len(seen) < len(final)
        self._shown = len(self._entries)
        self._final, self._open = _widths(seen), _widths(opened)
        return up + _written([*seen, *opened])

    def _draw(self, entries: Sequence[Entry]) -> str:
        lines = [line for entry in entries for line in self._lines_of(entry)]
        self._final += _widths(lines)
        self._shown = len(self._entries)
        return _written(lines)

    def _draw_open(self, room: int) -> str:
        lines = self._open_block(room)
        self._open = _widths(lines)
        return _written(lines)

    def _lines_of(self, entry: Entry) -> list[Line]:
        """Its lines and a blank one. To open and fold thoughts, all that was drawn before is taken again."""
        if self._drawn_for != (columns := self._console.size.width):
            self._drawn, self._drawn_for = {}, columns
        key = entry, self.looks.unfolded and isinstance(entry, Thought | Call)
        if key not in self._drawn:
            self._drawn[key] = [*_lines(self._console, render(entry, self.looks)), _BLANK]
        return self._drawn[key]

    def _open_block(self, room: int) -> list[Line]:
        lines = self._open_lines(room - 1)
        return [*lines, _BLANK] if lines else []

    def _open_lines(self, room: int) -> list[Line]:
        entry = self.transcript.open
        if (kind := type(entry).__name__) != self._open_kind:
            self._open_kind, self._open_since = kind, self._clock()
        if entry is None or room < 1:
            return []
        if isinstance(entry, Answer):
            return _lines(self._console, render(Answer(newest(entry.source, room)), self.looks))[-room:]
        spinner = _SPINNER[int(self._clock() / SPIN_S) % len(_SPINNER)]
        age = self._clock() - self._open_since
        if isinstance(entry, Running):
            texts = []
            for summary, output in entry.calls:
                texts.append(Text(f"{spinner} ⚙ {summary} · {age:.1f} s", "cyan"))
                if output.strip():
                    texts.append(Text(f"  {output}", "dim", no_wrap=True, overflow="ellipsis"))
            return _lines(self._console, Group(*texts))[:room]
        lines = _lines(self._console, Text(f"{spinner} {working_text(entry)} · {age:.1f} s", "dim"))
        if isinstance(entry, Thinking):
            rows = room - len(lines)
            rows = max(0, rows if self.looks.unfolded else min(rows, _OPEN_THOUGHT_LINES))
            text = _lines(self._console, Text(newest(entry.text.rstrip(), rows), "dim"))
            lines += text[len(text) - min(rows, len(text)) :]
        return lines[:room]

    def _up(self, widths: list[int]) -> str:
        """To where lines of these widths begin, and rid of them; a narrower terminal has wrapped them."""
        rows = self._rows(widths)
        # Erased from its second row on: tmux keeps a screen that is erased as a whole in its scrollback.
        return f"\x1b[{rows}A\r\x1b[K\x1b[B\x1b[J\x1b[A" if rows else ""

    def _rows(self, widths: list[int]) -> int:
        columns = max(1, self._console.size.width)
        return sum(max(1, -(-width // columns)) for width in widths)


def working_text(entry: LoadProgress | ToolServersStarting | Reading | Thinking) -> str:
    """What is being done before there is an answer."""
    if isinstance(entry, LoadProgress):
        amount = amount_text(entry)
        return f"The model again: {entry.stage}" + f" · {amount}" * bool(amount)
    if isinstance(entry, ToolServersStarting):
        return f"Waiting for MCP: {', '.join(entry.names)}"
    if isinstance(entry, Reading):
        return f"Reading the prompt: {entry.done:,} of {entry.total:,} tokens"
    return f"Thinking · {count(entry.tokens, 'token')}" if entry.tokens else "Thinking"


def _widths(lines: list[Line]) -> list[int]:
    return [line.width for line in lines]


def _written(lines: list[Line]) -> str:
    return "".join(f"{line.text}\n" for line in lines)


def _lines(console: Console, inner: RenderableType) -> list[Line]:
    """Its lines, without blank ones around them and blanks after them."""
    options = console.options.update(height=None)
    rows = [_rstrip(line) for line in console.render_lines(inner, options, pad=False)]
    while rows and not rows[-1]:
        rows.pop()
    while rows and not rows[0]:
        rows.pop(0)
    with console.capture() as written:
        console.print(SegmentLines(rows, new_lines=True), end="")
    texts = written.get().split("\n")[:-1]
    widths = [sum(segment.cell_length for segment in row) for row in rows]
    return [Line(text, width) for text, width in zip(texts, widths, strict=True)]


def _rstrip(line: list[Segment]) -> list[Segment]:
    """Without the blanks that only fill the width: they would end up in what a person copies."""
    line = list(line)
    while line and not line[-1].text.strip():
        line.pop()
    if line:
        line[-1] = Segment(line[-1].text.rstrip(), *line[-1][1:])
    return line
