"""Time to first token late in a long conversation, where the KV cache is reused.

Against no reuse, the message alone, a bare forward of it behind the same history, and an early turn.

The conversation is prefilled ahead as while a person types, and the message with it if it was typed, so that
its first token is known; one that is sent at once is not. Without reuse the same turn stands behind another
system message, so that nothing of it is in the cache. The bare forward is transformers' own, on a cache that
holds all but the new tokens: what is left when everything else costs nothing. A step of decoding behind the
same history is the least that a first token takes which was not read ahead.

New tokens attend to all of the history, which the message alone and an early turn do not. What that takes at
least is told too: its products as fast as this machine multiplies, or reading the KV cache as fast as memory
is, whichever is longer. "at the limit" compares with both together.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from glmchat.engine.bandwidth import read_bandwidth
from glmchat.engine.base import Engine, GenerationOptions
from glmchat.engine.local import LocalEngine, open_local
from glmchat.engine.memory import LoadOptions
from glmchat.events import TurnDone
from glmchat.glm.checkpoints import resolve
from glmchat.messages import Conversation, Message

from .checkpoint import AIR_LAYERS, SHAPE, write_random_checkpoint
from .decode import BareLoop, settled, side
from .gpu import matmul_speed
from .report import Comparison, show

OPTIONS = GenerationOptions(greedy=True, max_tokens=2, enable_thinking=False)
PAUSE_S = 1.0
"""Before each question, as a person makes one: a processor that idled takes longer at first."""
WORDS = "the lazy dog sleeps "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="checkpoint to run; default: a random 270M, and two of Air's layers")
    parser.add_argument("--turns", type=int, default=20, help="the turn that is measured (%(default)s)")
    parser.add_argument("--last", type=int, default=50, help="the turn to which it grows (%(default)s)")
    parser.add_argument("--history", type=int, default=8000, help="tokens before it (%(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="of each measurement (%(default)s)")
    parser.add_argument("--device-map", default="cpu", help="cpu, or cuda:0 (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Measure and print the table."""
    if args.model:
        rows = _measure(args.model, args, whole=True)
    else:
        with tempfile.TemporaryDirectory() as folder:
            rows = _measure(written(f"{folder}/random-270M", SHAPE), args, whole=True)
            rows += _measure(written(f"{folder}/Air's layers", AIR_LAYERS), args, whole=False)
    show("Time to first token, s", rows)


def _measure(model: str, args: argparse.Namespace, *, whole: bool) -> list[Comparison]:
    """Without `whole` not what reads all of the history each time."""
    with contextlib.ExitStack() as stack:
        engine = settled(stack.enter_context(open_local(model, LoadOptions(device_map=args.device_map))))
        limits = stack.enter_context(side(_limits, model, args))()
        bare = stack.enter_context(side(_bare, model, args)) if whole else None
        return [
            *_compare(engine, limits, bare, "And {n}?", args, typed=True),
            *_compare(engine, limits, bare, f"{{n}} {WORDS}", args, typed=False),
        ]


def written(folder: str, shape: dict[str, int]) -> str:
    """A checkpoint made by another process: in one that computed itself the engine is slower (see `side`)."""
    with side(_write, folder, shape) as write:
        return str(write())


def _write(folder: str, shape: dict[str, int]) -> Callable[[], Path]:
    return lambda: write_random_checkpoint(Path(folder), shape)


def _bare(model: str, args: argparse.Namespace) -> Callable[..., float]:
    return BareLoop(model, args.device_map).ttft


def _limits(_: str, args: argparse.Namespace) -> Callable[[], tuple[float, float]]:
    """FLOP/s of products and bytes/s of the device."""
    import torch

    device = torch.device(args.device_map)
    return lambda: (matmul_speed(device, 2048 if device.type == "cpu" else 8192), read_bandwidth(str(device)))


def _compare(
    engine: LocalEngine,
    limits: tuple[float, float],
    bare: Callable[..., float] | None,
    text: str,
    args: argparse.Namespace,
    *,
    typed: bool,
) -> list[Comparison]:
    history = exchanges(engine, args.turns - 1, args.history)
    longer = exchanges(engine, args.last - 1, args.history)
    warm, cold, alone, floor, second, last, step = [], [], [], [], [], [], []
    for number in range(args.repeats):
        question = Message("user", text.format(n=number))
        other = Message("system", f"{number} " * 3)
        done = _ask(engine, [*history, question], read=True, typed=typed)
        usage = done.usage
        warm.append(_ttft(done))
        step.append(1 / (done.timing.decode_tokens_per_s or 0))
        if bare is not None:
            ids = engine.render(Conversation([*history, question]), options=OPTIONS).ids
            floor.append(bare(ids, min(usage.cached_tokens, len(ids) - 1)))
            cold.append(_ttft(_ask(engine, [other, *history, question])))
        alone.append(_ttft(_ask(engine, [other, question])))
        second.append(_ttft(_ask(engine, [*longer[:2], question], read=True, typed=typed)))
        last.append(_ttft(_ask(engine, [*longer, question], read=True, typed=typed)))
    new = usage.prompt_tokens - usage.cached_tokens
    how = f"{'typed' if typed else 'sent at once'}, {new} new"
    least = _least_attention_s(engine, limits, new, usage.cached_tokens)
    rows = [
        ("  ÷ the message alone", warm, alone, 1.3),
        ("  ÷ that, and attention at the limit", warm, [s + least for s in alone], 1.3),
        ("  ÷ a step of decoding", warm, step, 1.3 if typed else None),
        (f"  turn {args.last} ÷ turn 2", last, second, 1.3),
        ("  ÷ that, and attention at the limit", last, [s + least for s in second], 1.3),
    ]
    if bare is not None:
        rows = [("  ÷ no reuse", warm, cold, 0.05), ("  ÷ a bare forward", warm, floor, 1.3), *rows]
    name = f"{Path(engine.info.name).name}, turn {args.turns}, {usage.prompt_tokens:,} tokens; {how}"
    rows[0] = (f"{name} {rows[0][0].strip()}", *rows[0][1:])
    return [Comparison(*row, more_is_better=False) for row in rows]


def _least_attention_s(engine: LocalEngine, limits: tuple[float, float], new: int, known: int) -> float:
    """What it takes at least that so many new tokens attend to so many known ones, in BF16."""
    if not new:
        return 0.0
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(resolve(engine.info.name).folder)
    each = config.num_hidden_layers * config.head_dim * known
    products = 4 * each * config.num_attention_heads * new  # with keys and with values, 2 FLOP a product
    kv_bytes = 4 * each * config.num_key_value_heads
    flop_s, bytes_s = limits
    return max(products / flop_s, kv_bytes / bytes_s)


def exchanges(engine: Engine, turns: int, tokens: int) -> list[Message]:
    """So many questions and answers, which together are about as many tokens."""

    def size(words: int) -> int:
        pair = [Message("user", f"10 {WORDS * words}"), Message("assistant", WORDS * words)]
        return len(engine.render(Conversation(pair), options=OPTIONS).ids)

    words = max(1, round((tokens / turns - size(0)) / (size(2) - size(1))))
    pairs = (
        (Message("user", f"{n} {WORDS * words}"), Message("assistant", WORDS * words)) for n in range(turns)
    )
    return [message for pair in pairs for message in pair]


def _ask(
    engine: LocalEngine, messages: list[Message], *, read: bool = False, typed: bool = False
) -> TurnDone:
    """Answer the last message; those before it were `read` before, and it was read while it was `typed`."""
    conversation = Conversation(messages)
    if read:
        list(engine.generate(Conversation(messages[:-1]), options=OPTIONS))
        known = conversation if typed else Conversation([*messages[:-1], Message("user", "…")])
        engine.prepare(known, options=OPTIONS)
    time.sleep(PAUSE_S)
    *_, done = engine.generate(conversation, options=OPTIONS)
    assert isinstance(done, TurnDone)
    return done


def _ttft(done: TurnDone) -> float:
    assert done.timing.ttft_s is not None
    return done.timing.ttft_s
