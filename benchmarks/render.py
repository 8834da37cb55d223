"""What the terminal costs: CPU per token of streaming an answer in Markdown, drawn as in the chat.

Tokens come at 100 a second by a clock of the benchmark's own, so that as many frames are drawn as a person
would get. Compared are a long answer with a short one, our way with rich's `Live(Markdown(whole))` at as
many frames a second, and a token's cost with the 10 ms that it has.
"""

from __future__ import annotations

import argparse
import io
import time
from functools import partial

from prompt_toolkit.completion import DummyCompleter
from prompt_toolkit.data_structures import Size
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.key_binding import KeyBindings
from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown

from glmchat.events import AnswerDelta
from glmchat.terminal.early import PROMPT
from glmchat.terminal.inline import Frames, Inline
from glmchat.terminal.screen import Looks, Screen

from .report import Comparison, measure_pairs, show

TOKENS_PER_S = 100
ROWS, COLUMNS = 24, 80
SAMPLE = 20
"""rich draws every 20th frame only, which is reckoned as twenty: all of them would take minutes."""

PIECE = """## Section {n}

A paragraph of *plain* prose with some `code` in it, long enough to be wrapped on a terminal that is eighty
columns wide, as most paragraphs are.

- a first point
- a second one, with **weight**
  1. and a detail
  2. and another

```python
def square(x: int) -> int:
    return x * x  # {n}
```

| name | value |
| --- | ---: |
| one | {n} |
| two | 2 |

> A remark that somebody made.

"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens", type=int, default=50_000, help="of the long answer (%(default)s)")
    parser.add_argument("--short", type=int, default=2_000, help="of the short one (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="measured pairs (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Measure and print the table."""
    long, short = answer(args.tokens), answer(args.short)
    growth = measure_pairs(partial(ours, long), partial(ours, short), args.repeats)
    tokens_a_frame = len(short) / stream(short)
    versus = measure_pairs(partial(ours, short), partial(richs, short, tokens_a_frame), args.repeats)
    budget = [1e6 / TOKENS_PER_S] * args.repeats
    show(
        "CPU per token, µs",
        [
            Comparison(f"{args.tokens:,} tokens, to {args.short:,}", *growth, 1.15, more_is_better=False),
            Comparison("to rich's Live(Markdown(whole))", *versus, 1.0, more_is_better=False),
            Comparison("of the 10 ms a token has", growth[0], budget, 0.03, more_is_better=False),
        ],
    )


def answer(tokens: int) -> list[str]:
    """An answer as it comes, about four characters a token."""
    pieces = "".join(PIECE.replace("{n}", str(n)) for n in range(tokens * 4 // len(PIECE) + 1))
    return [pieces[i : i + 4] for i in range(0, 4 * tokens, 4)]


class Sink(io.StringIO):
    """A terminal's far end, where nobody looks."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)


def stream(tokens: list[str]) -> int:
    """The answer above the input line and the toolbar, as in the chat. Returns how often it was drawn."""
    now, frames = 0.0, 0
    screen = Screen(terminal(Sink()), Looks(), clock=lambda: now)
    output = Frames(Sink(), lambda: Size(ROWS, COLUMNS), term="xterm-256color")

    def draw() -> None:
        nonlocal frames
        began = time.thread_time()
        inline.write_above(screen.frame)
        screen.drawn(time.thread_time() - began)
        frames += 1

    def talk() -> None:
        nonlocal now
        for token in tokens:
            screen.feed(AnswerDelta(token))
            now += 1 / TOKENS_PER_S
            if now >= screen.draw_at:
                draw()
        screen.end()
        draw()
        inline.app.exit()

    with create_pipe_input() as keyboard:
        inline = Inline(
            keys=KeyBindings(),
            prompt=lambda: PROMPT,
            toolbar=lambda columns: [("", "demo · cpu · thinking on")],
            notes=list,
            history=InMemoryHistory(),
            completer=DummyCompleter(),
            on_resize=lambda: None,
            on_fault=lambda text: None,
            output=output,
            keyboard=keyboard,
        )
        inline.app.run(pre_run=talk, handle_sigint=False)
    return frames


def ours(tokens: list[str]) -> float:
    """µs of CPU per token on the chat's own screen."""
    started = time.process_time()
    stream(tokens)
    return (time.process_time() - started) / len(tokens) * 1e6


def richs(tokens: list[str], tokens_a_frame: float) -> float:
    """µs of CPU per token where every frame draws the whole answer."""
    a_sample = round(tokens_a_frame * SAMPLE)
    ends = range(a_sample // 2, len(tokens), a_sample)
    started = time.process_time()
    with Live(console=terminal(Sink()), auto_refresh=False, vertical_overflow="crop") as live:
        for end in ends:
            live.update(Markdown("".join(tokens[:end])), refresh=True)
    return (time.process_time() - started) * SAMPLE / len(tokens) * 1e6


def terminal(sink: Sink) -> Console:
    """A terminal of 80 by 24 that nobody looks at."""
    return Console(file=sink, force_terminal=True, width=COLUMNS, height=ROWS, color_system="256")
