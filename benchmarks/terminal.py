"""What the conversation in a terminal costs: decode speed against `--json`, and how soon it takes keys.

The pseudo-terminal is read as fast as it is written to. Both front ends answer in turn in one program; the
waiting time for keys is that of a whole one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import pexpect

from .checkpoint import add_model_argument, chosen_models
from .report import Comparison, show
from .startup import GLMCHAT

PATIENCE_S = 300
STATS = re.compile(rb"(\d[\d,]*) tokens \xc2\xb7 (\d[\d.,]*) tokens/s")
BEARABLE_S = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("--prompt", default="What is 98765432198765 + 12345678912345?")
    parser.add_argument("--tokens", type=int, default=200, help="new tokens at most (%(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="measured pairs (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Measure and print the table."""
    with chosen_models(args) as models:
        comparisons = [_compare(model, args) for model in models]
    waits, bearable = [_until_keys() for _ in range(args.repeats)], [BEARABLE_S] * args.repeats
    comparisons.append(Comparison("start to first key, s", waits, bearable, 1.0, False))
    show("The terminal, against --json and half a second", comparisons)


def _compare(model: str, args: argparse.Namespace) -> Comparison:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "speeds.json"
        words = [model, args.prompt, str(args.tokens), str(args.repeats), str(file)]
        both = _spawn([sys.executable, "-m", "benchmarks.both", *words])
        for _ in range(args.repeats):
            both.expect("/help lists")
            both.send(f"{args.prompt}\r")
            both.expect(STATS)
            both.send("\x04")
        both.expect(pexpect.EOF)
        speeds = json.loads(file.read_text(encoding="utf-8"))
    return Comparison(f"{Path(model).name}: decode, tokens/s", *speeds, 0.97, more_is_better=True)


def _until_keys() -> float:
    started = time.perf_counter()
    chat = _spawn([*GLMCHAT, "--model", "demo"])
    chat.send("qqq")
    chat.expect("qqq")
    seconds = time.perf_counter() - started
    chat.send("\x03")
    _leave(chat)
    return seconds


def _spawn(command: list[str]) -> pexpect.spawn[bytes]:
    env = {**os.environ, "TERM": "xterm-256color", "HF_HUB_OFFLINE": "1"}
    chat = pexpect.spawn(
        command[0], command[1:], env=env, dimensions=(24, 80), timeout=PATIENCE_S, echo=False
    )
    chat.delaybeforesend = None
    return chat


def _leave(chat: pexpect.spawn[bytes]) -> None:
    chat.send("\x04")
    chat.expect(pexpect.EOF)
    chat.close()
