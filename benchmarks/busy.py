"""Decode speed where other programs want the CPU too, against a bare loop that has to do with the same ones.

Beside one program that takes a core, and beside as many as there are cores.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .checkpoint import SHAPE
from .decode import GOAL, bare_loop, plain, side
from .report import Comparison, measure_pairs, show
from .reuse import written


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="checkpoint to run; default: a random 270M")
    parser.add_argument("--prompt", default="What is 47 + 38?")
    parser.add_argument("--tokens", type=int, default=32, help="new tokens at most (%(default)s)")
    parser.add_argument("--device-map", default="cpu", help="cpu, or cuda:0 (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="measured pairs (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Measure and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or written(f"{folder}/random-270M", SHAPE)
        rows = []
        with side(plain, model, args) as ours, side(bare_loop, model, args) as bare:
            for count in (0, 1, os.cpu_count() or 1):
                with others(count):
                    speeds = measure_pairs(lambda: ours()[1], lambda: bare()[1], args.repeats)
                rows.append(Comparison(f"{Path(model).name}, beside {count}", *speeds, GOAL, True))
    show("Greedy decoding beside programs that take a core each, tokens/s", rows)


@contextlib.contextmanager
def others(count: int) -> Iterator[None]:
    """So many programs that do nothing, and take all the time that they get for it."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for program in running:
            program.kill()
            program.wait()
