"""Memory: the peak of a load against the weights, and what many turns leave behind."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from glmchat.chat import Chat
from glmchat.engine.base import GenerationOptions

from .checkpoint import LARGE, SHAPE, write_random_checkpoint
from .report import Comparison, show

MB = 1e6
QUESTIONS = (
    "hi",
    "What is 47 + 38?",
    "My name is Ada.",
    "What is my name?",
    "Show me a table.",
    "What commands are there?",
    "你好",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", action="append", help="checkpoint to load; default: a random 270M and 820M"
    )
    parser.add_argument("--turns", type=int, default=1000, help="turns with the demo (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="loads of each checkpoint (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Measure and print the tables."""
    # First, while this process holds nothing else.
    marks = [args.turns // 10, args.turns // 2, args.turns]
    *before, after = (size / MB for size in sizes_over_turns("demo", marks))
    with tempfile.TemporaryDirectory() as folder:
        models = args.model or [
            str(write_random_checkpoint(Path(folder) / name, shape))
            for name, shape in (("random-270M", SHAPE), ("random-820M", LARGE))
        ]
        comparisons = [_load(model, args.repeats) for model in models]
    # Kernels and work space for new shapes come in steps until the longest conversation has been seen.
    for mark, size, goal in zip(marks, before, (1.05, 1.02), strict=False):
        name = f"resident set, MB: after {args.turns} turns ÷ {mark}"
        comparisons.append(Comparison(name, [after], [size], goal, more_is_better=False))
    show("Memory", comparisons)


def _load(model: str, repeats: int) -> Comparison:
    loads = [load_peak(model) for _ in range(repeats)]
    peaks, weights = [load["peak"] / MB for load in loads], [load["weights"] / MB for load in loads]
    name = f"{Path(model).name}: peak of a load, MB ÷ weights"
    return Comparison(name, peaks, weights, 1.1, more_is_better=False)


def load_peak(model: str) -> dict[str, int]:
    """What peak.py tells of a load."""
    command = [sys.executable, "-m", "benchmarks.peak", model]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parent.parent
    )
    told: dict[str, int] = json.loads(done.stdout)
    return told


def sizes_over_turns(
    model: str, marks: Sequence[int], on_mark: Callable[[], None] = lambda: None
) -> list[int]:
    """The resident set in bytes after so many turns each: short ones, of all kinds that there are."""
    rng = random.Random(0)
    sizes = []
    options = GenerationOptions(max_tokens=24, seed=0)
    with Chat.from_model(model, device_map="cpu", options=options) as chat:
        for number in range(1, max(marks) + 1):
            kind = rng.random()
            if kind < 0.15:
                chat.clear()
            elif kind < 0.3:
                chat.undo()  # the next question makes a branch
            elif kind < 0.5:
                chat.prepare()
            stopped = rng.random() < 0.15
            with closing(chat.send(f"{rng.choice(QUESTIONS)} {number}")) as turn:
                for _ in turn:
                    if stopped:
                        chat.cancel()
            if number in marks:
                on_mark()
                sizes.append(resident())
    return sizes


def resident() -> int:
    """Bytes of this process that are in memory, less what the heap keeps of freed blocks: that follows the
    largest turn so far, and would hide how much each leaves behind.
    """
    with contextlib.suppress(AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
