"""The benchmarks run and print their table; what they measure is for people to read, not for a test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        (
            ("decode", "--model", "demo", "--tokens", "4", "--repeats", "1"),
            ("demo, ", "TextIteratorStreamer"),
        ),
        (("speculate", "--tokens", "20", "--repeats", "1"), ("demo, bfloat16", "tokens a forward")),
        (
            ("reuse", "--model", "demo", "--history", "400", "--turns", "4", "--last", "6", "--repeats", "1"),
            ("without reuse", "the message alone"),
        ),
        (
            ("cancel", "--model", "demo", "--prompt-tokens", "3000", "--repeats", "2"),
            ("prefill of 3,000", "decoding"),
        ),
        (
            ("memory", "--model", "demo", "--turns", "20", "--repeats", "1"),
            ("peak of a load", "20 turns ÷ 2 ", "20 turns ÷ 10"),
        ),
        (("startup", "--repeats", "1"), ("--version", "--help", "echo hi | glmchat")),
        (("render", "--tokens", "400", "--short", "200", "--repeats", "1"), ("rich's Live", "10 ms")),
        (
            ("terminal", "--model", "demo", "--tokens", "8", "--repeats", "1"),
            ("demo: ", "first key", "echo of keys"),
        ),
    ],
)
def test_a_short_run_prints_the_table(arguments: tuple[str, ...], rows: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr  # 1: a goal was missed, as it may be in so short a run
    assert "ratio" in done.stdout, done.stderr
    assert all(row in done.stdout for row in rows)
