"""A GPU against its limits: decode and prefill of a glm4_moe in the shape of GLM-4.5-Air.

Its weights are random and made on the device, as many layers of it as fit. Decoding is compared with the time
that it takes to read the weights of one token once, by the speed of a copy, and with transformers' own
`generate`; prefill with the speed of a large BF16 matrix product.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from glmchat.engine import native
from glmchat.engine.attention import use_own_attention
from glmchat.engine.bandwidth import read_bandwidth
from glmchat.engine.base import GenerationOptions
from glmchat.engine.compiled import CompiledStep
from glmchat.engine.decode import Decoder
from glmchat.engine.loaded import LoadedModel
from glmchat.engine.sampling import Sampler
from glmchat.engine.weights import active_bytes
from glmchat.glm.checkpoints import SamplingDefaults

from .report import Comparison, measure_pairs, show

AIR = {
    "vocab_size": 151552,
    "hidden_size": 4096,
    "num_hidden_layers": 46,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 128,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
    "use_qk_norm": False,
    "max_position_embeddings": 131072,
}
SMALL = {
    **AIR,
    "vocab_size": 1000,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
}
"""To see on a CPU that this runs."""
SHARE = 0.85  # of the free memory, for weights
STEP_GOAL, GENERATE_GOAL, PREFILL_GOAL = 1.6, 2.0, 0.3
_WARM_UP = 5  # steps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="cuda", help="cpu: a tiny model, to see that it runs (%(default)s)"
    )
    parser.add_argument("--context", type=int, default=1024, help="tokens before those decoded (%(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens decoded (%(default)s)")
    parser.add_argument("--prefill", type=int, default=8192, help="tokens prefilled (%(default)s)")
    parser.add_argument(
        "--compile", choices=("on", "off"), default="on", help="the decode step (%(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="measured pairs (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Measure and print the table."""
    import torch

    if args.device != "cpu" and not torch.cuda.is_available():
        print("There is no CUDA device here, so there is nothing to measure.")
        return
    device = torch.device(args.device)
    model = build(device)
    use_own_attention(model)
    loaded = LoadedModel(model, ExitStack(), speculate="off", folder=Path())
    if args.compile == "on":
        began = time.perf_counter()
        loaded.compiled = CompiledStep(loaded, model, asked=True)
        while loaded.compile_more():
            pass
        print(f"Compiling the decode step took {time.perf_counter() - began:.0f} s.")
    decoder = Decoder(loaded)
    large = device.type != "cpu"
    bandwidth = read_bandwidth(args.device)
    peak = median(lambda: matmul_speed(device, 8192 if large else 256), 5)
    read_bytes = token_bytes(model) + cache_bytes(model, args.context + args.tokens // 2)
    flops = prefill_flops(model, args.prefill)
    name = f"{len(model.model.layers)} layers, {loaded.parameters / 1e9:.1f}B"
    print(
        f"{name}: {read_bytes / 1e9:.3g} GB a token, copied at {bandwidth / 1e12:.3g} TB/s; "
        f"matrix products reach {peak / 1e12:.3g} TFLOP/s."
    )
    steps = [step_seconds(decoder, args) for _ in range(args.repeats)]
    prefills = [prefill_seconds(decoder, args.prefill) for _ in range(args.repeats)]
    pairs = measure_pairs(
        lambda: 1 / step_seconds(decoder, args), lambda: generate_speed(loaded, model, args), args.repeats
    )
    bare = [read_bytes / bandwidth * 1e3] * args.repeats
    show(
        "GLM-4.5-Air's layers with random weights",
        [
            Comparison("decode step, ms; bare: its bytes", [s * 1e3 for s in steps], bare, STEP_GOAL, False),
            Comparison("decode, tokens/s; bare: generate", *pairs, GENERATE_GOAL, True),
            Comparison(
                f"prefill of {args.prefill:,}, TFLOP/s; bare: a product",
                [flops / s / 1e12 for s in prefills],
                [peak / 1e12] * args.repeats,
                PREFILL_GOAL,
                True,
            ),
        ],
    )


def build(device: Any, layers: int | None = None) -> Any:
    """The model in BF16 on `device`, with so many layers, or as many as fit."""
    import torch
    from transformers import AutoModelForCausalLM, Glm4MoeConfig

    shape = SMALL
    if device.type != "cpu":
        shape = {**AIR, "num_hidden_layers": layers or count_layers(AIR, torch.cuda.mem_get_info(device)[0])}
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(Glm4MoeConfig(**shape), dtype=torch.bfloat16).eval()
    model.generation_config.eos_token_id = None  # random weights end at any time
    model.generation_config.pad_token_id = 0
    return model


def count_layers(shape: dict[str, Any], free: int) -> int:
    """How many layers of `shape` fit into SHARE of `free` bytes, one expert layer at least."""
    import torch
    from transformers import AutoModelForCausalLM, Glm4MoeConfig

    def size(layers: int) -> int:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                Glm4MoeConfig(**{**shape, "num_hidden_layers": layers}), dtype=torch.bfloat16
            )
        return sum(p.nbytes for p in model.parameters())

    least = int(shape["first_k_dense_replace"]) + 1
    base = size(least)
    each = size(least + 1) - base
    return max(least, min(int(shape["num_hidden_layers"]), least + (int(free * SHARE) - base) // each))


def token_bytes(model: Any) -> int:
    """Bytes of the weights that one token reads."""
    return sum(active_bytes(model).values())


def cache_bytes(model: Any, tokens: int) -> int:
    """Bytes of their keys and values."""
    config = model.config
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 2 * tokens


def prefill_flops(model: Any, tokens: int) -> int:
    """Of the layers' matrix products, and of causal attention; lm_head runs on the last token alone."""
    config = model.config
    weights = (token_bytes(model) - model.lm_head.weight.nbytes) // 2
    attention = 2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * tokens**2
    return int(2 * weights * tokens + attention)


def matmul_speed(device: Any, size: int) -> float:
    """FLOP/s of the product of two square BF16 matrices; in FP32 on a CPU that has no products in BF16, where
    torch would take a thousand times as long, or has slower ones."""
    import torch

    widened = device.type == "cpu" and not native.packs()
    dtype = torch.float32 if widened else torch.bfloat16
    a, b = (torch.rand(size, size, dtype=dtype, device=device) for _ in range(2))
    return 2 * size**3 / seconds(device, lambda: a @ b)


def seconds(device: Any, do: Callable[[], Any], times: int = 10) -> float:
    """How long it takes, over `times` in a row after some to warm up."""
    import torch

    for _ in range(3):
        do()
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    began = time.perf_counter()
    for _ in range(times):
        do()
    synchronize()
    return (time.perf_counter() - began) / times


def median(measure: Callable[[], float], repeats: int) -> float:
    return statistics.median(measure() for _ in range(repeats))


def a_prompt(vocabulary: int, count: int) -> list[int]:
    return [(7 + 31 * n) % vocabulary for n in range(count)]


def step_seconds(decoder: Decoder, args: argparse.Namespace) -> float:
    """Median time of a decode step in glmchat's own loop, choice of the token included."""
    loaded = decoder.loaded
    sample = Sampler(SamplingDefaults(), GenerationOptions(greedy=True), lambda d: loaded.generator(0, d))
    times = []
    with loaded.inference():
        decoding = decoder.begin(a_prompt(loaded._model.config.vocab_size, args.context), guess=False)
        for _ in decoding.prefill(lambda: False):
            pass
        with loaded.decoding():
            tokens = decoding.tokens(sample, None)
            for _ in range(_WARM_UP + args.tokens):
                began = time.perf_counter()
                next(tokens)
                times.append(time.perf_counter() - began)
        decoding.keep()
    return statistics.median(times[_WARM_UP:])


def prefill_seconds(decoder: Decoder, count: int) -> float:
    """How long glmchat takes to prefill so many tokens, nothing of which is in a cache."""
    loaded = decoder.loaded
    decoder.prefixes.drop()
    prompt = a_prompt(loaded._model.config.vocab_size, count)
    with loaded.inference():
        began = time.perf_counter()
        decoding = decoder.begin(prompt, guess=False)
        for _ in decoding.prefill(lambda: False):
            pass
        int(decoding._next_logits().argmax())  # waits for the GPU
        return time.perf_counter() - began


def generate_speed(loaded: LoadedModel, model: Any, args: argparse.Namespace) -> float:
    """Tokens/s of transformers' greedy `generate` after the first, with its own attention."""
    ids = loaded.ids(a_prompt(model.config.vocab_size, args.context))

    def seconds_for(count: int) -> float:
        began = time.perf_counter()
        model.generate(
            ids,
            attention_mask=ids.new_ones(ids.shape),
            do_sample=False,
            min_new_tokens=count,
            max_new_tokens=count,
        ).tolist()
        return time.perf_counter() - began

    ours = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    one = seconds_for(1)
    speed = args.tokens / max(1e-9, seconds_for(1 + args.tokens) - one)
    model.set_attn_implementation(ours)
    return speed
