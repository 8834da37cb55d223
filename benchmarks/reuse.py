"""Time to first token late in a long conversation: against no reuse of the KV cache, and the message alone.

The conversation is prefilled ahead as while a person types. Without reuse the same turn stands behind another
system message, so that nothing of it is in the cache.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from glmchat.engine.base import GenerationOptions
from glmchat.engine.local import LocalEngine, open_local
from glmchat.engine.memory import LoadOptions
from glmchat.events import TurnDone
from glmchat.messages import Conversation, Message

from .checkpoint import write_random_checkpoint
from .report import Comparison, show

OPTIONS = GenerationOptions(greedy=True, max_tokens=2, enable_thinking=False)
WORDS = "the quick brown fox jumps over the lazy dog and then it sleeps "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="checkpoint to run; default: a random 270M")
    parser.add_argument("--turns", type=int, default=20, help="the turn that is measured (%(default)s)")
    parser.add_argument("--history", type=int, default=8000, help="tokens before it (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Measure and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or str(write_random_checkpoint(Path(folder) / "random-270M"))
        with open_local(model, LoadOptions(device_map="cpu")) as engine:
            comparisons = _compare(engine, args)
    show("Time to first token, s", comparisons)


def _compare(engine: LocalEngine, args: argparse.Namespace) -> list[Comparison]:
    history = _history(engine, args.turns - 1, args.history)
    warm, cold, alone, second, last = [], [], [], [], []
    for number in range(args.repeats):
        question = Message("user", f"Question {number}: {WORDS}")
        warm.append(_ttft(engine, [*history, question], ahead=True))
        other = Message("system", f"{number} " * 3)
        cold.append(_ttft(engine, [other, *history, question]))
        alone.append(_ttft(engine, [other, question]))
        second.append(_ttft(engine, [*history[:2], question], ahead=True))
        last.append(_ttft(engine, [*history, question], ahead=True))
    prompt = engine.render(Conversation([*history, question]), options=OPTIONS)
    name = f"turn {args.turns}, {len(prompt.ids):,} tokens"
    return [
        Comparison(f"{name} ÷ without reuse", warm, cold, 0.05, more_is_better=False),
        Comparison(f"{name} ÷ the message alone", warm, alone, 1.3, more_is_better=False),
        Comparison(f"{name} ÷ turn 2", last, second, 1.3, more_is_better=False),
    ]


def _history(engine: LocalEngine, turns: int, tokens: int) -> list[Message]:
    """So many questions and answers, which together are about as many tokens."""
    one = Conversation([Message("user", WORDS), Message("assistant", WORDS)])
    many = max(1, tokens // turns // len(engine.render(one, options=OPTIONS).ids))
    pairs = (
        (Message("user", f"{n} {WORDS * many}"), Message("assistant", WORDS * many)) for n in range(turns)
    )
    return [message for pair in pairs for message in pair]


def _ttft(engine: LocalEngine, messages: list[Message], *, ahead: bool = False) -> float:
    conversation = Conversation(messages)
    if ahead:
        list(engine.generate(Conversation(messages[:-1]), options=OPTIONS))  # the history is read
        engine.prepare(conversation, options=OPTIONS)
        time.sleep(1)
    *_, done = engine.generate(conversation, options=OPTIONS)
    assert isinstance(done, TurnDone)
    assert done.timing.ttft_s is not None
    return done.timing.ttft_s
