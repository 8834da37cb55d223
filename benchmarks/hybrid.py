"""Experts in main memory beside a GPU, against accelerate, which moves them there for each forward.

The layers of GLM-4.5-Air with random weights, the experts of half of them in main memory. What a decode step
takes is compared, too, with reading the weights of one token once, each where it lies.
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from glmchat.engine.attention import use_own_attention
from glmchat.engine.bandwidth import read_bandwidth
from glmchat.engine.compiled import CompiledStep
from glmchat.engine.decode import Decoder
from glmchat.engine.hybrid import compute_where_they_are, experts_of
from glmchat.engine.loaded import LoadedModel
from glmchat.engine.placing import but_experts
from glmchat.engine.weights import active_bytes

from .gpu import a_prompt, build, generate_speed, prefill_seconds, step_seconds
from .report import Comparison, show

GOAL = 10.0
_THEIR_TOKENS = 3
"""Each takes seconds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", type=int, default=8, help="of the model (%(default)s)")
    parser.add_argument("--context", type=int, default=1024, help="tokens before those decoded (%(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens decoded (%(default)s)")
    parser.add_argument("--prefill", type=int, default=4096, help="tokens prefilled (%(default)s)")
    parser.add_argument(
        "--compile", choices=("on", "off"), default="on", help="the decode step (%(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Measure and print the table."""
    import torch

    if not torch.cuda.is_available():
        print("There is no CUDA device here, so there is nothing to measure.")
        return
    from accelerate import dispatch_model

    model = build(torch.device("cuda"), args.layers)
    experts = experts_of(model)
    apart = set(list(experts)[len(experts) // 2 :])
    for name in apart:
        experts[name].to("cpu")
    placed = {**dict.fromkeys(but_experts(model, apart), 0), **dict.fromkeys(apart, "cpu")}
    dispatch_model(model, device_map=placed)
    fewer = argparse.Namespace(**{**vars(args), "tokens": _THEIR_TOKENS})
    loaded = LoadedModel(model, ExitStack(), speculate="off", folder=Path())
    their_speeds = [generate_speed(loaded, model, fewer) for _ in range(args.repeats)]
    their_prefills = [_prefill(model, loaded, args.prefill) for _ in range(args.repeats)]
    for _ in compute_where_they_are(model):
        pass
    use_own_attention(model)
    loaded = LoadedModel(model, ExitStack(), speculate="off", folder=Path())
    if args.compile == "on":
        loaded.compiled = CompiledStep(loaded, model, asked=True)
    while loaded.compile_more() or loaded.page_more():
        pass
    decoder = Decoder(loaded)
    active = active_bytes(model)
    least = sum(size / read_bandwidth(device) for device, size in active.items())
    shares = ", ".join(f"{size / 1e9:.3g} GB of {device}" for device, size in active.items())
    print(f"{args.layers} layers, the experts of {len(apart)} in main memory; a token reads {shares}.")
    steps = [step_seconds(decoder, args) for _ in range(args.repeats)]
    prefills = [prefill_seconds(decoder, args.prefill) for _ in range(args.repeats)]
    show(
        "Experts in main memory",
        [
            Comparison(
                "decode, tokens/s; bare: accelerate", [1 / s for s in steps], their_speeds, GOAL, True
            ),
            Comparison(
                "decode step, ms; bare: its bytes",
                [s * 1e3 for s in steps],
                [least * 1e3] * args.repeats,
                None,
                False,
            ),
            Comparison(
                f"prefill of {args.prefill:,}, tokens/s; bare: accelerate",
                [args.prefill / s for s in prefills],
                [args.prefill / s for s in their_prefills],
                1.0,
                True,
            ),
        ],
    )


def _prefill(model: Any, loaded: LoadedModel, count: int) -> float:
    """Seconds of one forward of so many tokens, as transformers does it."""
    ids = loaded.ids(a_prompt(model.config.vocab_size, count))
    with loaded.inference():
        began = time.perf_counter()
        int(model(input_ids=ids, logits_to_keep=1).logits[0, -1].argmax())
        return time.perf_counter() - began
