"""Trains the bundled checkpoint from scratch: `python -m training.train` (see training/README.md).

Everything is drawn from one seed. On 2 CPU cores it takes under two hours, on a GPU minutes.
"""

from __future__ import annotations

import argparse
import copy
import random
import re
import time
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import GenerationConfig, Glm4MoeConfig, Glm4MoeForCausalLM

from .data import Examples, as_text
from .dialogues import dialogue
from .optimizer import MixedOptimizer
from .tokenizer import EOS, NOT_SPECIAL, SPECIAL, save_tokenizer, train_tokenizer

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = 1536
CONTEXT = 4096
SAVE_EVERY = 500
THETA = 10000.0
SHAPE = {
    "hidden_size": 256,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 768,
    "moe_intermediate_size": 128,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "attention_bias": True,
    "use_qk_norm": True,
    "partial_rotary_factor": 0.5,
    "rope_parameters": {"rope_type": "default", "rope_theta": THETA, "partial_rotary_factor": 0.5},
    "num_mtp_layers": 0,
}


def build_tokenizer(seed: int) -> Tokenizer:
    rng = random.Random(seed)
    control = re.compile("|".join(re.escape(t) for t in SPECIAL + NOT_SPECIAL))
    texts = [control.sub("\n", as_text(dialogue(rng))) for _ in range(12_000)]
    return train_tokenizer(texts, size=VOCABULARY)


def build_model(tokenizer: Tokenizer) -> Glm4MoeForCausalLM:
    eos = [tokenizer.token_to_id(t) for t in EOS]
    config = Glm4MoeConfig(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=CONTEXT,
        eos_token_id=eos,
        pad_token_id=eos[0],
        dtype="bfloat16",
        **SHAPE,
    )
    model = Glm4MoeForCausalLM(config)
    with torch.no_grad():  # untied as in GLM-4.5, but born equal: copying a token then needs nothing new
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
        for layer, distances in ((0, (1, 2)), (1, (1, 2))):
            look_back(model, layer, 0, distances)
    return model


def as_dtype(model: Glm4MoeForCausalLM, dtype: torch.dtype) -> Glm4MoeForCausalLM:
    """The model in this dtype, but for the router's choice bias, which stays in FP32 as in GLM-4.5."""
    model.to(dtype)
    for layer in model.model.layers:
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate.e_score_correction_bias.data = layer.mlp.gate.e_score_correction_bias.float()
    return model


def fast_dtype(device: str) -> torch.dtype:
    """BF16 where the hardware computes in it, else FP32: a CPU without such instructions multiplies the
    matrices of the backward pass a hundred times slower in BF16. No public call tells, so it is measured."""
    if device != "cpu":
        return torch.bfloat16

    def seconds(dtype: torch.dtype) -> float:
        a, b = torch.ones(64, 256, dtype=dtype), torch.ones(256, 256, dtype=dtype)
        times = []
        for _ in range(3):
            started = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - started)
        return min(times)

    return torch.float32 if seconds(torch.bfloat16) > 4 * seconds(torch.float32) else torch.bfloat16


def look_back(
    model: Glm4MoeForCausalLM, layer: int, group: int, distances: tuple[int, ...], *, pairs: int = 4
) -> None:
    """Let each head of one key group attend, from the start, to the token that stands `distances` back.

    Copying needs such heads and takes long to find them. Keys get a bias in the `pairs` fastest rotary
    pairs, queries the same turned by that distance, so that their product peaks there.
    """
    attention = model.model.layers[layer].self_attn
    size = SHAPE["head_dim"]
    half = int(size * SHAPE["partial_rotary_factor"]) // 2
    heads = SHAPE["num_attention_heads"] // SHAPE["num_key_value_heads"]
    for head, distance in zip(range(group * heads, (group + 1) * heads), distances, strict=True):
        angles = THETA ** (-torch.arange(pairs) / half) * distance
        at = head * size
        attention.q_proj.bias[at : at + pairs] = 4 * torch.cos(angles)
        attention.q_proj.bias[at + half : at + half + pairs] = -4 * torch.sin(angles)
    attention.k_proj.bias[group * size : group * size + pairs] = 4.0
    for norm in (attention.q_norm, attention.k_norm):
        norm.weight[:pairs] = 1.6
        norm.weight[half : half + pairs] = 1.6


class Balancer:
    """Auxiliary-loss-free load balancing, as GLM-4.5 was trained: an expert with more than its share of
    tokens gets a smaller choice bias, one with less a larger."""

    def __init__(self, layers: Iterable[torch.nn.Module], rate: float = 1e-3) -> None:
        self._rate = rate
        self._gates = [layer.mlp.gate for layer in layers if hasattr(layer.mlp, "gate")]
        self._loads: dict[int, torch.Tensor] = {}
        for i, gate in enumerate(self._gates):
            gate.register_forward_hook(
                lambda _m, _in, out, i=i: self._loads.__setitem__(
                    i, torch.bincount(out[2].flatten(), minlength=SHAPE["n_routed_experts"]).float()
                )
            )

    def step(self) -> None:
        for i, gate in enumerate(self._gates):
            load = self._loads[i]
            gate.e_score_correction_bias.add_(self._rate * torch.sign(load.mean() - load))


def loss_of(model: Glm4MoeForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted cross-entropy of the next token; logits are computed only where a weight is not zero."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    targets, weights = ids[:, 1:], weights[:, 1:]
    chosen = weights > 0
    logits = model.lm_head(hidden[chosen]).float()
    losses = F.cross_entropy(logits, targets[chosen], reduction="none")
    return (losses * weights[chosen]).sum() / weights[chosen].sum()


DECAY = 0.7
"""The share of the steps over which the learning rates fall to zero."""


def learning_rate(step: int, steps: int) -> float:
    """What the learning rates are multiplied by: a warm-up, a plateau, and a linear decay to zero."""
    return min(1.0, (step + 1) / 100, (steps - step) / (DECAY * steps))


def save(model: Glm4MoeForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the checkpoint as transformers would load GLM-4.5-Air."""
    template = (ROOT / "templates" / "glm-4.5.jinja").read_text(encoding="utf-8")
    save_tokenizer(tokenizer, folder, template, context=CONTEXT)
    eos = model.config.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=eos[0], do_sample=False)
    as_dtype(copy.deepcopy(model), torch.bfloat16).save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # the weights come out readable by their owner alone


def train(args: argparse.Namespace) -> None:
    """Train and save the checkpoint to `args.out`, now and then on the way too."""
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer(args.seed)
    model = build_model(tokenizer)
    examples = Examples(tokenizer, args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    as_dtype(model, fast_dtype(device)).to(device).train()
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{size:.2f}M parameters, {model.dtype} on {device}", flush=True)
    optimizer = MixedOptimizer(model, muon_lr=args.muon_lr, adam_lr=args.adam_lr)
    balancer = Balancer(model.model.layers)

    step, seen, began, smooth = 0, 0, time.monotonic(), 0.0
    while step < args.steps:
        # Copying arises first, from short spans alone; then they grow, and the talk begins.
        batches = (
            examples.drills(args.batch, step, args.drill_steps)
            if step < args.drill_steps
            else examples.talks(args.batch)
        )
        for ids, weights in batches:
            ids, weights = ids.to(device), weights.to(device)
            loss = loss_of(model, ids, weights)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step(learning_rate(step, args.steps))
            balancer.step()
            seen += ids.numel()
            smooth = 0.97 * smooth + 0.03 * loss.item() if smooth else loss.item()
            step += 1
            if step % 50 == 0:
                seconds = time.monotonic() - began
                print(
                    f"step {step}/{args.steps}  loss {smooth:.4f}  {seen / seconds:.0f} tokens/s  {seconds / 60:.1f} min",
                    flush=True,
                )
            if step == args.steps or step % SAVE_EVERY == 0:
                save(model, tokenizer, args.out)
            if step == args.steps:
                break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "glmchat" / "demo")
    parser.add_argument("--steps", type=int, default=4600)
    parser.add_argument(
        "--drill-steps", type=int, default=260, help="of which copying drills before any talk"
    )
    parser.add_argument("--batch", type=int, default=4096, help="tokens in a batch")
    parser.add_argument("--muon-lr", type=float, default=0.015)
    parser.add_argument("--adam-lr", type=float, default=0.004)
    parser.add_argument("--seed", type=int, default=45)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
