"""What the conversation in a terminal costs: decode speed against `--json`, and how soon it takes keys.

Both are whole programs, the one in a pseudo-terminal that is read as fast as it is written to.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import time
from functools import partial
from pathlib import Path

import pexpect

from .checkpoint import add_model_argument, chosen_models
from .report import Comparison, measure_pairs, show
from .startup import GLMCHAT

PATIENCE_S = 300
STATS = re.compile(rb"(\d[\d,]*) tokens \xc2\xb7 (\d[\d.,]*) tokens/s")
BEARABLE_S = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("--prompt", default="What is 98765432198765 + 12345678912345?")
    parser.add_argument("--tokens", type=int, default=400, help="new tokens at most (%(default)s)")
    parser.add_argument("--repeats", type=int, default=31, help="measured pairs (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Measure and print the table."""
    with chosen_models(args) as models:
        comparisons = [_compare(model, args) for model in models]
    waits, bearable = [_until_keys() for _ in range(args.repeats)], [BEARABLE_S] * args.repeats
    comparisons.append(Comparison("start to first key, s", waits, bearable, 1.0, False))
    show("The terminal, against --json and half a second", comparisons)


def _compare(model: str, args: argparse.Namespace) -> Comparison:
    options = ["--model", model, "--device-map", "cpu", "--greedy", "--max-tokens", str(args.tokens)]
    speeds = measure_pairs(
        partial(_in_terminal, options, args.prompt), partial(_as_json, options, args.prompt), args.repeats
    )
    return Comparison(f"{Path(model).name}: decode, tokens/s", *speeds, 0.97, more_is_better=True)


def _as_json(options: list[str], prompt: str) -> float:
    command = [*GLMCHAT, *options, "--json", "--", prompt]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout:
        raise SystemExit(done.stderr)
    return float(json.loads(done.stdout)["timing"]["decode_tokens_per_s"])


def _in_terminal(options: list[str], prompt: str) -> float:
    chat = _spawn(options)
    chat.send(f"{prompt}\r")
    chat.expect(STATS)
    speed = float(chat.match[2].replace(b",", b""))
    _leave(chat)
    return speed


def _until_keys() -> float:
    started = time.perf_counter()
    chat = _spawn(["--model", "demo"])
    chat.send("qqq")
    chat.expect("qqq")
    seconds = time.perf_counter() - started
    chat.send("\x03")
    _leave(chat)
    return seconds


def _spawn(options: list[str]) -> pexpect.spawn[bytes]:
    env = {**os.environ, "TERM": "xterm-256color", "HF_HUB_OFFLINE": "1"}
    chat = pexpect.spawn(GLMCHAT[0], options, env=env, dimensions=(24, 80), timeout=PATIENCE_S, echo=False)
    chat.delaybeforesend = None
    return chat


def _leave(chat: pexpect.spawn[bytes]) -> None:
    chat.send("\x04")
    chat.expect(pexpect.EOF)
    chat.close()
