"""How long glmchat takes to start and to answer, against Python itself and a bare transformers script."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from glmchat.glm.checkpoints import resolve

from .report import Comparison, measure_pairs, show

BARE = Path(__file__).with_name("bare.py")
PYTHON = [sys.executable]
# As in a shell: what Python has compiled once it finds again.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
ENVIRONMENT["HF_HUB_OFFLINE"] = "1"
GLMCHAT = [str(Path(sys.executable).with_name("glmchat"))]
OPTIONS = ["--model", "demo", "--device-map", "cpu", "--greedy"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=15, help="measured pairs (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Measure and print the table."""
    answer = json.loads(_run([*GLMCHAT, *OPTIONS, "--json"])[1])
    tokens = str(answer["usage"]["completion_tokens"])
    bare = [*PYTHON, str(BARE), str(resolve("demo").folder), "hi", tokens]
    if (text := answer["message"]["content"]) not in (theirs := _run(bare)[1]):
        raise SystemExit(f"The bare script does not answer {text!r} but {theirs!r}.")
    nothing = [*PYTHON, "-c", "pass"]
    goals = [
        ("glmchat --version", [*GLMCHAT, "--version"], nothing, 10.0),
        ("glmchat --help", [*GLMCHAT, "--help"], nothing, 10.0),
        (f"echo hi | glmchat ({tokens} tokens)", [*GLMCHAT, *OPTIONS], bare, 1.1),
    ]
    comparisons = []
    for name, ours, base, goal in goals:
        times = measure_pairs(partial(_seconds, ours), partial(_seconds, base), args.repeats)
        comparisons.append(Comparison(name, *times, goal, more_is_better=False))
    show("Wall time of a whole process, seconds", comparisons)


def _seconds(command: list[str]) -> float:
    return _run(command)[0]


def _run(command: list[str]) -> tuple[float, str]:
    """Seconds that `command` takes with "hi" on stdin, and what it wrote."""
    started = time.perf_counter()
    done = subprocess.run(command, input="hi\n", capture_output=True, text=True, env=ENVIRONMENT)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return seconds, done.stdout
