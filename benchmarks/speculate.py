"""Decode speed with tokens guessed ahead against without, on the same weights.

By the MTP layer: questions to the bundled model. By lookup: SmolLM2 edits code, which repeats most of it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from glmchat.engine.base import GenerationOptions
from glmchat.engine.local import LocalEngine, open_local
from glmchat.engine.memory import LoadOptions
from glmchat.events import TurnDone, Usage
from glmchat.messages import Conversation, Message
from tests import smollm2

from .decode import side
from .report import Comparison, measure_pairs, show

CODE = """class Account:
    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = balance

    def deposit(self, amount):
        if amount <= 0:
            raise ValueError("The amount must be positive.")
        self.balance += amount
        return self.balance

    def withdraw(self, amount):
        if amount > self.balance:
            raise ValueError("There is not enough money.")
        self.balance -= amount
        return self.balance
"""
EDITS = (
    f"Rename the class to Wallet. Show the whole code:\n\n```python\n{CODE}```",
    f"Add a method `transfer` to this class and show the whole class:\n\n```python\n{CODE}```",
)
QUESTIONS = (
    "What is 47 + 38?",
    "What is 98 + 765?",
    "Show me a table.",
    "What commands are there?",
    "My name is Ada. What can you do?",
)
GOAL = {"mtp": 1.3, "lookup": 1.8}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="checkpoint to run; default: demo, or for lookup SmolLM2")
    parser.add_argument("--by", choices=("mtp", "lookup"), default="mtp", help="who guesses (%(default)s)")
    parser.add_argument("--prompt", action="append", help="what is asked; default: see above")
    parser.add_argument("--tokens", type=int, default=300, help="new tokens at most (%(default)s)")
    parser.add_argument("--dtype", default="auto", help="type of the weights (%(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="measured pairs (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Measure and print the table."""
    args.prompt = args.prompt or (QUESTIONS if args.by == "mtp" else EDITS)
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or "demo"
        if args.by == "lookup" and args.model is None:
            if smollm2.gguf_file() is None:
                print(f"SmolLM2 is not here: {smollm2.INSTALL}")
                return
            model = str(smollm2.convert(Path(folder) / "SmolLM2-135M"))
        _compare(model, args)


def _compare(model: str, args: argparse.Namespace) -> None:
    with side(_guessing, model, args) as ours, side(_plain, model, args) as plain:
        ours(), plain()  # how many guesses pay is learned first
        speeds = measure_pairs(lambda: ours()[0], lambda: plain()[0], args.repeats)
        _, usages = ours()
    guessed, right = sum(u.drafted_tokens for u in usages), sum(u.accepted_tokens for u in usages)
    tokens = sum(u.completion_tokens for u in usages)
    print(
        f"{right:,} of {guessed:,} guesses were right ({right / max(1, guessed):.0%}); "
        f"{tokens / max(1, tokens - right):.2f} tokens a forward."
    )
    name = f"{Path(model).name}, {args.by}: tokens/s"
    show("Guessing ahead against token by token", [Comparison(name, *speeds, GOAL[args.by], True)])


Measure = Callable[[], tuple[float, list[Usage]]]


def _guessing(model: str, args: argparse.Namespace) -> Measure:
    return _engine(model, args, args.by)


def _plain(model: str, args: argparse.Namespace) -> Measure:
    return _engine(model, args, "off")


def _engine(model: str, args: argparse.Namespace, speculate: str) -> Measure:
    engine = open_local(model, LoadOptions(device_map="cpu", dtype=args.dtype, speculate=speculate))
    return partial(_answer, engine, args.prompt, args.tokens)


def _answer(engine: LocalEngine, prompts: Sequence[str], tokens: int) -> tuple[float, list[Usage]]:
    """Answer all prompts: tokens/s after the first, and what was counted."""
    options = GenerationOptions(greedy=True, max_tokens=tokens)
    seconds, usages = 0.0, []
    for prompt in prompts:
        *_, done = engine.generate(Conversation([Message("user", prompt)]), options=options)
        assert isinstance(done, TurnDone)
        usages.append(done.usage)
        if done.timing.decode_tokens_per_s:
            seconds += (done.usage.completion_tokens - 1) / done.timing.decode_tokens_per_s
    return sum(u.completion_tokens - 1 for u in usages) / seconds, usages
