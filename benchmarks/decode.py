"""Decode speed of glmchat's engine against a hand-written greedy loop on the same weights.

Ours is the number that `--json` reports, with detokenising, parsing and events; theirs only calls the model.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from glmchat.engine.base import GenerationOptions
from glmchat.engine.local import LocalEngine, open_local
from glmchat.engine.memory import LoadOptions
from glmchat.events import TurnDone
from glmchat.glm.checkpoints import resolve
from glmchat.glm.encode import encode_prompt
from glmchat.messages import Conversation, Message

from .checkpoint import add_model_argument, chosen_models
from .report import Comparison, measure_pairs, show

GOAL = 0.95


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("--prompt", default="What is 47 + 38?")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens at most (%(default)s)")
    parser.add_argument("--repeats", type=int, default=25, help="measured pairs (%(default)s)")
    parser.add_argument("--device-map", default="cpu", help="for both sides (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Measure every model and print the table."""
    with chosen_models(args) as models:
        comparisons = [_compare(model, args) for model in models]
    show("Greedy decoding, tokens/s", comparisons)


def _compare(model: str, args: argparse.Namespace) -> Comparison:
    with open_local(model, LoadOptions(device_map=args.device_map)) as engine:
        bare = BareLoop(model, args.device_map)
        prompt = bare.encode(args.prompt)
        count, _ = _engine_speed(engine, args)
        expected, _ = bare.speed(prompt, args.tokens)
        if count != expected:
            raise SystemExit(f"{model}: glmchat wrote {count} tokens and the bare loop {expected}.")
        ours, theirs = measure_pairs(
            lambda: _engine_speed(engine, args)[1], lambda: bare.speed(prompt, args.tokens)[1], args.repeats
        )
        size = f"{engine.info.parameters / 1e6:.0f}M, {engine.info.dtype}, {count} tokens"
    return Comparison(f"{Path(model).name}: {size}", ours, theirs, GOAL, more_is_better=True)


def _engine_speed(engine: LocalEngine, args: argparse.Namespace) -> tuple[int, float]:
    """Tokens written in one turn, and tokens/s after the first."""
    options = GenerationOptions(max_tokens=args.tokens, greedy=True)
    *_, done = engine.generate(Conversation([Message("user", args.prompt)]), options=options)
    assert isinstance(done, TurnDone)
    if not done.timing.decode_tokens_per_s:
        raise SystemExit(f"{engine.info.name} wrote too few tokens to measure; choose another --prompt.")
    return done.usage.completion_tokens, done.timing.decode_tokens_per_s


class BareLoop:
    """Greedy decoding as one would write it by hand: nothing but the model and a stop check."""

    def __init__(self, model: str, device_map: str) -> None:
        from transformers import AutoModelForCausalLM

        self._checkpoint = resolve(model)
        self._model = AutoModelForCausalLM.from_pretrained(
            self._checkpoint.folder, dtype="auto", device_map=device_map
        ).eval()

    def encode(self, prompt: str) -> list[int]:
        template = self._checkpoint.folder / "chat_template.jinja"
        return encode_prompt(self._checkpoint.tokenizer, [Message("user", prompt)], template=template)

    def speed(self, prompt: list[int], limit: int) -> tuple[int, float]:
        """Tokens written, and tokens/s after the first."""
        import torch
        from transformers import DynamicCache

        model, eos = self._model, self._checkpoint.eos_token_ids
        cache = DynamicCache(config=model.config)
        ids: Any = torch.tensor([prompt], device=model.device)
        count = 0
        first_at = 0.0
        with torch.inference_mode():
            while True:
                logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
                token = logits[:, -1].argmax(-1)
                token_id = int(token)
                count += 1
                first_at = first_at or time.perf_counter()
                if token_id in eos or count == limit:
                    return count, (count - 1) / (time.perf_counter() - first_at)
                ids = token.view(1, 1)
