"""Trains the bundled checkpoint's MTP layer, which drafts what its trunk will write: `python -m training.mtp`.

The trunk stays as it is. `--measure` trains nothing: it prints how many drafts the trunk would accept.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Glm4MoeForCausalLM

from glmchat.engine.mtp import MtpHead, load_mtp

from .data import Examples
from .evaluate import generate, load, prompts_of
from .held_out import cases
from .optimizer import MixedOptimizer
from .train import ROOT, Balancer, learning_rate

DEPTH = 3
"""How many tokens are drafted from one state of the trunk."""
SHARES = (0.5, 0.3, 0.2)
"""The weights of the drafts' losses: a draft is of use only where all before it were right."""


CHAINS_FROM = 0.4
"""The share of the steps after which all drafts are learned; before, only the first, which is faster."""


def new_head(model: Glm4MoeForCausalLM) -> MtpHead:
    """A layer that begins as the trunk's last one, on the sum of token and state."""
    head = MtpHead(model)
    layer = head.layer
    size = model.config.hidden_size
    with torch.no_grad():
        layer["block"].load_state_dict(model.model.layers[-1].state_dict())
        layer["eh_proj"].weight.copy_(torch.eye(size).repeat(1, 2))
        for norm in (layer["enorm"], layer["hnorm"]):
            norm.weight.fill_(1.0)
        layer["shared_head"]["norm"].weight.copy_(model.model.norm.weight)
    return head


def drafts(head: MtpHead, ids: Tensor, hidden: Tensor, depth: int) -> list[Tensor]:
    """The layer's states for ids [b, n + 1] and the trunk's states [b, n + 1, H] at them, draft by draft.

    At place q of [b, n, H] is what makes the token q + 2: as draft j (from 0) it goes back to the trunk's
    state at q - j, and means nothing where j > q. It attends to what the cache holds while drafting: the
    trunk's states up to q - j, then the drafts after it in the same chain.
    """
    tokens, state = ids[:, 1:], hidden[:, :-1]
    n = tokens.shape[1]
    query, key = torch.arange(n, device=ids.device)[:, None], torch.arange(n, device=ids.device)
    positions = torch.arange(n, device=ids.device)[None]
    cache = head.new_cache()
    out = []
    for j in range(depth):
        seen = [key <= query - j, *(key == query - (j - i) for i in range(1, j + 1))]
        out.append(
            head.run(tokens, state, cache, positions, torch.cat(seen, dim=1)[None, None] if j else None)
        )
        state = F.pad(out[-1][:, :-1], (0, 0, 1, 0))
    return out


def loss_of(head: MtpHead, model: Glm4MoeForCausalLM, ids: Tensor, weights: Tensor, depth: int) -> Tensor:
    """How far each draft's distribution is from the trunk's own for that token, as cross-entropy."""
    with torch.no_grad():
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    total = hidden.new_zeros((), dtype=torch.float32)
    for j, states in enumerate(drafts(head, ids[:, :-1], hidden[:, :-1], depth)):
        wanted = weights[:, 2:].clone()
        wanted[:, :j] = 0.0
        chosen = wanted > 0
        with torch.no_grad():
            taught = model.lm_head(hidden[:, 1:-1][chosen]).float().softmax(-1)
        losses = F.cross_entropy(head.logits(states[chosen]).float(), taught, reduction="none")
        total = total + SHARES[j] * (losses * wanted[chosen]).sum() / wanted[chosen].sum()
    return total


def save(head: MtpHead, folder: Path) -> None:
    """Puts the layer into the checkpoint, beside the trunk's weights, which stay as they are."""
    file = folder / "model.safetensors"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    prefix = f"model.layers.{config['num_hidden_layers']}."
    trunk = {k: v for k, v in load_file(file).items() if not k.startswith(prefix)}
    own = {prefix + k: v.cpu() for k, v in head.tensors().items()}
    own = {k: v if k.endswith("_bias") else v.to(torch.bfloat16) for k, v in own.items()}
    new = file.with_suffix(".new")
    save_file({k: v.contiguous() for k, v in {**trunk, **own}.items()}, new, metadata={"format": "pt"})
    written = load_file(new)
    assert all(torch.equal(written[k].view(torch.uint8), v.view(torch.uint8)) for k, v in trunk.items())
    new.chmod(0o644)
    os.replace(new, file)
    config["num_nextn_predict_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    model, tokenizer = load(args.model)
    model.requires_grad_(False)
    head = new_head(model)
    head.layer.requires_grad_(True).train()
    examples = Examples(tokenizer, args.seed)
    optimizer = MixedOptimizer(head.layer, muon_lr=args.muon_lr, adam_lr=args.adam_lr)
    balancer = Balancer([head.layer["block"]])
    size = sum(p.numel() for p in head.layer.parameters()) / 1e6
    print(f"{size:.2f}M parameters, {model.dtype} on {head.device}", flush=True)

    step, began, smooth = 0, time.monotonic(), 0.0
    while step < args.steps:
        for ids, weights in examples.talks(args.batch):
            depth = DEPTH if step >= CHAINS_FROM * args.steps else 1
            loss = loss_of(head, model, ids.to(head.device), weights.to(head.device), depth)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(head.layer.parameters(), 1.0)
            optimizer.step(learning_rate(step, args.steps))
            balancer.step()
            smooth = 0.97 * smooth + 0.03 * loss.item() if smooth else loss.item()
            step += 1
            if step % 50 == 0:
                minutes = (time.monotonic() - began) / 60
                print(f"step {step}/{args.steps}  loss {smooth:.4f}  {minutes:.1f} min", flush=True)
            if step == args.steps:
                break
    head.layer.requires_grad_(False).eval()
    save(head, args.model)
    report(args.model, args.count)


@torch.inference_mode()
def accepted(
    head: MtpHead, model: Glm4MoeForCausalLM, prompt: list[int], answer: list[int]
) -> list[list[bool]]:
    """For each token of the trunk's greedy answer but the last, which of the drafts after it are right."""
    ids = torch.tensor([prompt + answer], device=head.device)
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    right = [
        (head.logits(states)[0].argmax(-1) == ids[0, 2:]).tolist()
        for states in drafts(head, ids[:, :-1], hidden[:, :-1], DEPTH)
    ]
    first, end = len(prompt) - 1, ids.shape[1] - 2
    return [[right[j][q + j] for j in range(min(DEPTH, end - q))] for q in range(first, end)]


def tokens_per_forward(answers: list[list[list[bool]]], depth: int) -> float:
    """Of the trunk, with that many drafts checked in each of its forwards."""
    tokens = forwards = 0
    for answer in answers:
        at = 0
        while at < len(answer):
            some = answer[at][:depth]
            at += 1 + next((i for i, ok in enumerate(some) if not ok), len(some))
            forwards += 1
        tokens += len(answer)
    return tokens / forwards


def report(folder: Path, count: int) -> None:
    """Prints how many drafts are accepted in the trunk's answers to questions that no training saw."""
    model, tokenizer = load(folder)
    head = load_mtp(model, folder)
    if head is None:
        raise SystemExit(f"{folder} has no MTP layer; train one with python -m training.mtp")
    prompts = sorted(prompts_of(tokenizer, cases(random.Random(7), count)), key=len)
    answers = [
        accepted(head, model, prompt, answer)
        for start in range(0, len(prompts), 64)
        for prompt, answer in zip(
            prompts[start : start + 64], generate(model, tokenizer, prompts[start : start + 64]), strict=True
        )
    ]
    print(f"{len(answers)} answers of {sum(map(len, answers)) + len(answers)} tokens")
    for j in range(DEPTH):
        reached = [row[j] for answer in answers for row in answer if len(row) > j and all(row[:j])]
        print(
            f"draft {j + 1}: {sum(reached) / max(1, len(reached)):.1%} accepted where it is reached;"
            f" {tokens_per_forward(answers, j + 1):.2f} tokens a forward with {j + 1} drafted"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "glmchat" / "demo")
    parser.add_argument("--measure", action="store_true", help="only measure the layer that is there")
    parser.add_argument("--count", type=int, default=40, help="cases of each kind in the measurement")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=4096, help="tokens in a batch")
    parser.add_argument("--muon-lr", type=float, default=0.03)
    parser.add_argument("--adam-lr", type=float, default=0.004)
    parser.add_argument("--seed", type=int, default=46)
    args = parser.parse_args()
    if args.measure:
        report(args.model, args.count)
    else:
        train(args)


if __name__ == "__main__":
    main()
