"""What the conversation in a terminal costs: decode speed against `--json` and a bare loop of
forwards, and how soon it takes keys.

The pseudo-terminal is read as fast as it is written to. Both front ends answer in turn in one program, the
bare loop in another. The waiting times for keys are those of a whole program, the echoes those of keys typed
while it is imported and loads the model: at first a prompt shows them that is replaced by the whole screen.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

import pexpect

from .checkpoint import add_model_argument, chosen_models
from .decode import bare_loop, side
from .report import Comparison, show
from .startup import ENVIRONMENT, GLMCHAT

PATIENCE_S = 300
LOADING_S = 4.0
STATS = re.compile(rb"(\d[\d,]*) tokens \xc2\xb7 (\d[\d.,]*) tokens/s")
BEARABLE_S, BEARABLE_ECHO_S = 0.3, 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("--prompt", default="What is 98765432198765 + 12345678912345?")
    parser.add_argument("--tokens", type=int, default=200, help="new tokens at most (%(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="measured pairs (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Measure and print the table."""
    with chosen_models(args) as models:
        comparisons = [row for model in models for row in _compare(model, args)]
    waits, echoes = zip(*(_keys() for _ in range(args.repeats)), strict=True)
    for name, measured, bearable in (
        ("start to first key, s", waits, BEARABLE_S),
        ("echo of keys while it loads, 99th percentile, s", echoes, BEARABLE_ECHO_S),
    ):
        comparisons.append(Comparison(name, measured, [bearable] * args.repeats, 1.0, False))
    whole, bearable = [_until_whole() for _ in range(args.repeats)], [BEARABLE_S] * args.repeats
    comparisons.append(Comparison("start to the whole screen, s", whole, bearable, None, False))
    show("The terminal", comparisons)


def _compare(model: str, args: argparse.Namespace) -> list[Comparison]:
    loop = argparse.Namespace(**vars(args), device_map="cpu")
    bare = []
    with tempfile.TemporaryDirectory() as folder, side(bare_loop, model, loop) as measure:
        measure()  # it is loaded
        file = Path(folder) / "speeds.json"
        words = [model, args.prompt, str(args.tokens), str(args.repeats), str(file)]
        both = spawn([sys.executable, "-m", "benchmarks.both", *words])
        for _ in range(args.repeats):
            both.expect("/help lists")
            bare.append(measure()[1])  # while the other waits for the prompt
            both.send(f"{args.prompt}\r")
            both.expect(STATS)
            both.send("\x04")
        both.expect(pexpect.EOF)
        speeds = json.loads(file.read_text(encoding="utf-8"))
    terminal, in_json = speeds
    return [
        Comparison(f"{Path(model).name}: decode, tokens/s ÷ --json", terminal, in_json, 0.97, True),
        Comparison("  ÷ bare loop", terminal, bare, 0.97, True),
    ]


def _keys() -> tuple[float, float]:
    """Seconds from the start to the first key, and the 99th percentile of echoes in the LOADING_S after."""
    started = time.perf_counter()
    chat = spawn([*GLMCHAT, "--model", "demo"])
    chat.send("qqq")
    chat.expect("qqq")
    first = time.perf_counter() - started
    echoes = []
    while time.perf_counter() - started < LOADING_S:
        for key in "zqj":  # none twice in a row, and none in what is written meanwhile
            began = time.perf_counter()
            chat.send(key)
            chat.expect(key)
            echoes.append(time.perf_counter() - began)
            time.sleep(0.02)
    chat.send("\x03")
    leave(chat)
    return first, statistics.quantiles(echoes, n=100)[-1]


def _until_whole() -> float:
    """Seconds from the start until the toolbar stands below the line, too."""
    started = time.perf_counter()
    chat = spawn([*GLMCHAT, "--model", "demo"])
    chat.expect("thinking on")
    seconds = time.perf_counter() - started
    leave(chat)
    return seconds


def spawn(command: list[str], *, cwd: str | None = None, offline: bool = True) -> pexpect.spawn[bytes]:
    """A program in a pseudo-terminal."""
    env = {**ENVIRONMENT, "TERM": "xterm-256color", "HF_HUB_OFFLINE": str(int(offline))}
    chat = pexpect.spawn(
        command[0],
        command[1:],
        env=env,
        cwd=cwd,
        dimensions=(24, 80),
        timeout=PATIENCE_S,
        echo=False,
    )
    chat.delaybeforesend = None
    return chat


def leave(chat: pexpect.spawn[bytes]) -> None:
    chat.send("\x04")
    chat.expect(pexpect.EOF)
    chat.close()
