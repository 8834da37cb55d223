"""Time to first token of a message that a person types into the terminal, late in a long conversation.

A whole program in a pseudo-terminal is asked a question and, after a pause, the one that is measured, key by
key; Enter comes in the same instant as the last key, or as soon after it as a person's other finger. What the
model has not read by then it reads while the person waits. Compared with the same message in an empty
conversation and with the same turn, both of which nothing is known of before they are sent; and with turn 2.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pexpect

from glmchat.engine.base import GenerationOptions
from glmchat.messages import Conversation, Message
from glmchat.settings import NONE, Settings
from glmchat.terminal import start
from glmchat.terminal.progress import LoadState

from . import reuse
from .both import converse
from .checkpoint import AIR_LAYERS, SHAPE
from .report import Comparison, show
from .reuse import WORDS, exchanges, written
from .terminal import STATS, spawn

BETWEEN_KEYS_S = 0.1
ENTERS_S = (0.0, 0.1)
PAUSE_S = 1.5
"""For a person to read the answer, and to think."""

add_arguments = reuse.add_arguments


def run(args: argparse.Namespace) -> None:
    """Measure and print the table."""
    if args.model:
        rows = _measure(args.model, args)
    else:
        with tempfile.TemporaryDirectory() as folder:
            rows = _measure(written(f"{folder}/random-270M", SHAPE), args)
            rows += _measure(written(f"{folder}/Air's layers", AIR_LAYERS), args)
    show("Time to first token of what is typed, s", rows)


@dataclass(frozen=True, slots=True)
class Case:
    """The turn that is measured, and when Enter comes after its last key; None: with all of its text, in a
    conversation of which nothing is known."""

    turn: int
    enter_s: float | None = None


def _measure(model: str, args: argparse.Namespace) -> list[Comparison]:
    typed = [Case(turn, enter_s) for enter_s in ENTERS_S for turn in (args.turns, args.last, 2)]
    cold, alone = Case(args.turns), Case(1)
    cases = args.repeats * [*typed, cold, alone]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "times.json"
        asked = json.dumps([(case.turn, case.enter_s) for case in cases])
        words = [model, args.device_map, str(args.history), asked, str(file)]
        chat = spawn([sys.executable, "-m", "benchmarks.typed", *words])
        for number, case in enumerate(cases):
            chat.expect("/help lists")
            if case.enter_s is not None:
                _say(chat, f"{number} {WORDS}", None)
                time.sleep(PAUSE_S)
            _say(chat, f"{number} {WORDS}!", case.enter_s)
            chat.send("\x04")
        chat.expect(pexpect.EOF)
        times = json.loads(file.read_text(encoding="utf-8"))
    of: dict[Case, list[float]] = {case: [] for case in cases}
    for case, ttft_s in zip(cases, times, strict=True):
        of[case].append(ttft_s)
    rows = []
    for enter_s in ENTERS_S:
        late, last, second = (of[Case(turn, enter_s)] for turn in (args.turns, args.last, 2))
        when = f"Enter {enter_s:g} s after the last key"
        what = f"{Path(model).name}, turn {args.turns}, {args.history:,} tokens; {when}"
        for name, ours, theirs, goal in (
            (f"{what} ÷ no reuse", late, of[cold], 0.05),
            ("  ÷ the message alone", late, of[alone], 1.3),
            (f"  turn {args.last} ÷ turn 2", last, second, 1.3),
        ):
            rows.append(Comparison(name, ours, theirs, goal, more_is_better=False))
    return rows


def _say(chat: pexpect.spawn[bytes], text: str, enter_s: float | None) -> None:
    """Type it and wait for the end of the answer. None: it comes in one instant."""
    if enter_s is None:
        chat.send(text)
    else:
        for key in text:
            time.sleep(BETWEEN_KEYS_S)
            chat.send(key)
        time.sleep(enter_s)
    chat.send("\r")
    chat.expect(STATS)


def main(model: str, device_map: str, tokens: str, cases: str, file: str) -> None:
    """The program at which somebody types: a conversation for each case. Writes seconds to `file`."""
    settings = Settings(model=model, device_map=device_map, tools=(NONE,), offline=True)
    load = LoadState()
    times = []
    with start.open_chat(settings, load, apart=True) as chat:
        chat.options = GenerationOptions(greedy=True, max_tokens=2, enable_thinking=False)
        _ = chat.engine.info
        for number, (turn, enter_s) in enumerate(json.loads(cases)):
            messages = exchanges(chat.engine, max(turn - 1, 1), int(tokens))[: 2 * (turn - 1)]
            if enter_s is None:
                messages.insert(0, Message("system", f"{number} " * 3))
            else:
                del messages[-2:]  # the person asks that
            chat.conversation = Conversation(messages)
            times.append(converse(chat, load).ttft_s)
    Path(file).write_text(json.dumps(times), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
