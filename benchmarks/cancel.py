"""How long an answer goes on after it was cancelled: in the prefill of a long prompt, and while decoding.

The model runs in a process of its own, as behind every conversation; the slowest of all tries counts.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path

from glmchat.engine.base import GenerationOptions
from glmchat.engine.memory import LoadOptions
from glmchat.engine.worker import WorkerEngine
from glmchat.events import PromptReady, TurnDone
from glmchat.messages import Conversation, Message

from .checkpoint import write_random_checkpoint
from .report import Comparison, show
from .reuse import WORDS

BEARABLE_S = 0.2
DECODING_S = 0.4
"""Within so long of its prefill an answer is cancelled, if it takes that long."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="checkpoint to run; default: a random 270M")
    parser.add_argument("--prompt-tokens", type=int, default=8000, help="of the prompt (%(default)s)")
    parser.add_argument("--prompt", default="What is 98765432198765 + 12345678912345?")
    parser.add_argument("--repeats", type=int, default=10, help="tries of each (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Measure and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or str(write_random_checkpoint(Path(folder) / "random-270M"))
        engine = WorkerEngine(model, LoadOptions(device_map="cpu"))
        try:
            rows = _measure(engine, Path(model).name, args)
        finally:
            engine.close()
    show("Seconds from the cancel to the end of the turn, the slowest", rows)


def _measure(engine: WorkerEngine, name: str, args: argparse.Namespace) -> list[Comparison]:
    one = len(engine.render(Conversation([Message("user", WORDS)])).ids)
    long = WORDS * (args.prompt_tokens // one)
    whole = _turn(engine, f"whole {long}", None)  # how long the prefill takes
    shares = [(n + 0.5) / args.repeats for n in range(args.repeats)]
    prefill = [_turn(engine, f"{n} {long}", share * whole * 0.5) for n, share in enumerate(shares)]
    within = min(DECODING_S, 0.5 * _turn(engine, args.prompt, None, decoding=True))
    decode = [_turn(engine, args.prompt, share * within, decoding=True) for share in shares]
    return [
        Comparison(f"{name}, {what}", [max(times)], [BEARABLE_S], 1.0, False)
        for what, times in ((f"prefill of {args.prompt_tokens:,} tokens", prefill), ("decoding", decode))
    ]


def _turn(engine: WorkerEngine, text: str, cancel_s: float | None, *, decoding: bool = False) -> float:
    """Seconds that a turn goes on after it is cancelled, so long after its prefill or decoding began; without
    a time to cancel it at, seconds of all of it."""
    cancel = threading.Event()
    cancelled_at = began = time.perf_counter()
    timer: threading.Timer | None = None

    def stop() -> None:
        nonlocal cancelled_at
        cancelled_at = time.perf_counter()
        cancel.set()

    options = GenerationOptions(greedy=True, max_tokens=400 if decoding else 1)
    for event in engine.generate(Conversation([Message("user", text)]), options=options, cancel=cancel):
        if cancel_s is not None and timer is None and isinstance(event, PromptReady):
            timer = threading.Timer(cancel_s, stop)
            timer.start()
        if isinstance(event, TurnDone) and timer is not None:
            if event.finish_reason != "interrupted":
                raise SystemExit("A turn was over before it was cancelled; choose a longer prompt.")
            return time.perf_counter() - cancelled_at
    return time.perf_counter() - began
