"""Time to first token late in a long conversation, where the KV cache is reused.

Against no reuse, the message alone, a bare forward of it behind the same history, and an early turn.

The conversation is prefilled ahead as while a person types. Without reuse the same turn stands behind another
system message, so that nothing of it is in the cache. The bare forward is transformers' own, on a cache that
holds all but the new tokens: what is left when everything else costs nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from glmchat.engine.base import GenerationOptions
from glmchat.engine.local import LocalEngine, open_local
from glmchat.engine.memory import LoadOptions
from glmchat.events import TurnDone, Usage
from glmchat.messages import Conversation, Message

from .checkpoint import write_random_checkpoint
from .decode import BareLoop
from .report import Comparison, show

OPTIONS = GenerationOptions(greedy=True, max_tokens=2, enable_thinking=False)
WORDS = "the lazy dog sleeps "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="checkpoint to run; default: a random 270M")
    parser.add_argument("--turns", type=int, default=20, help="the turn that is measured (%(default)s)")
    parser.add_argument("--last", type=int, default=50, help="the turn to which it grows (%(default)s)")
    parser.add_argument("--history", type=int, default=8000, help="tokens before it (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Measure and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or str(write_random_checkpoint(Path(folder) / "random-270M"))
        with open_local(model, LoadOptions(device_map="cpu")) as engine:
            bare = BareLoop(model, "cpu")
            rows = [
                row for text in ("And {n}?", f"{{n}} {WORDS}") for row in _compare(engine, bare, text, args)
            ]
    show("Time to first token, s", rows)


def _compare(engine: LocalEngine, bare: BareLoop, text: str, args: argparse.Namespace) -> list[Comparison]:
    history = _history(engine, args.turns - 1, args.history)
    longer = _history(engine, args.last - 1, args.history)
    warm, cold, alone, floor, second, last = [], [], [], [], [], []
    for number in range(args.repeats):
        question = Message("user", text.format(n=number))
        other = Message("system", f"{number} " * 3)
        usage, seconds = _ttft(engine, [*history, question], ahead=True)
        warm.append(seconds)
        ids = engine.render(Conversation([*history, question]), options=OPTIONS).ids
        floor.append(bare.ttft(ids, usage.cached_tokens))
        cold.append(_ttft(engine, [other, *history, question])[1])
        alone.append(_ttft(engine, [other, question])[1])
        second.append(_ttft(engine, [*longer[:2], question], ahead=True)[1])
        last.append(_ttft(engine, [*longer, question], ahead=True)[1])
    new = f"{len(ids) - usage.cached_tokens} new"
    name = f"turn {args.turns}, {usage.prompt_tokens:,} tokens, {new}"
    return [
        Comparison(f"{name} ÷ no reuse", warm, cold, 0.05, more_is_better=False),
        Comparison("  ÷ a bare forward of them", warm, floor, 1.3, more_is_better=False),
        Comparison("  ÷ the message alone", warm, alone, 1.3, more_is_better=False),
        Comparison(f"  turn {args.last} ÷ turn 2", last, second, 1.3, more_is_better=False),
    ]


def _history(engine: LocalEngine, turns: int, tokens: int) -> list[Message]:
    """So many questions and answers, which together are about as many tokens."""

    def size(words: int) -> int:
        pair = [Message("user", f"10 {WORDS * words}"), Message("assistant", WORDS * words)]
        return len(engine.render(Conversation(pair), options=OPTIONS).ids)

    words = max(1, round((tokens / turns - size(0)) / (size(2) - size(1))))
    pairs = (
        (Message("user", f"{n} {WORDS * words}"), Message("assistant", WORDS * words)) for n in range(turns)
    )
    return [message for pair in pairs for message in pair]


def _ttft(engine: LocalEngine, messages: list[Message], *, ahead: bool = False) -> tuple[Usage, float]:
    conversation = Conversation(messages)
    if ahead:
        list(engine.generate(Conversation(messages[:-1]), options=OPTIONS))  # the history is read
        engine.prepare(conversation, options=OPTIONS)
        time.sleep(1)
    *_, done = engine.generate(conversation, options=OPTIONS)
    assert isinstance(done, TurnDone)
    assert done.timing.ttft_s is not None
    return done.usage, done.timing.ttft_s
