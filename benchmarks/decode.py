"""Decode speed of glmchat's engine against other ways to decode the same weights in Python.

Ours is the number that `--json` reports, with detokenising, parsing and events. The bare loop only calls the
model; `generate` streams its text as transformers' own examples do. Guessing ahead is off, but for one line.
The limit is what the memory bandwidth allows, where each token reads its weights; its ratio is our share.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from glmchat.engine.bandwidth import read_bandwidth
from glmchat.engine.base import GenerationOptions
from glmchat.engine.local import LocalEngine, open_local
from glmchat.engine.memory import LoadOptions
from glmchat.events import TurnDone
from glmchat.glm.checkpoints import resolve
from glmchat.glm.encode import encode_prompt
from glmchat.messages import Conversation, Message

from .checkpoint import (
    AIR_LAYERS,
    FLASH_LAYERS,
    add_model_argument,
    chosen_models,
    write_random_checkpoint,
)
from .report import Comparison, measure_pairs, show

GOAL, GOAL_STREAMER = 0.97, 1.1
BEHIND = 2000
"""Tokens, about, that are in the cache before latents are attended to."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("--prompt", default="What is 47 + 38?")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens at most (%(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="measured pairs (%(default)s)")
    parser.add_argument("--device-map", default="cpu", help="for both sides (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Measure every model and print the table."""
    with chosen_models(args) as models, tempfile.TemporaryDirectory() as folder:
        if not args.model:
            shape = AIR_LAYERS | {"n_routed_experts": 16}  # a token reads 8; four processes hold all
            models = [*models, str(write_random_checkpoint(Path(folder) / "Air's layers", shape))]
        comparisons = [row for model in models for row in _compare(model, args)]
        if not args.model:
            flash = Path(folder) / f"Flash's layers behind {BEHIND:,}"
            write_random_checkpoint(flash, FLASH_LAYERS, "glm4_moe_lite")
            long = {**vars(args), "prompt": " ".join([args.prompt] * (BEHIND // 11))}
            comparisons += _compare(str(flash), argparse.Namespace(**long))
    show("Greedy decoding, tokens/s", comparisons)


def _compare(model: str, args: argparse.Namespace) -> list[Comparison]:
    with contextlib.ExitStack() as stack:
        sides = {name: stack.enter_context(side(make, model, args)) for name, make in SIDES.items()}
        counts = {name: measure()[0] for name, measure in sides.items() if name != "limit"}
        if len(set(counts.values())) > 1:
            raise SystemExit(f"{model}: not the same number of tokens from all: {counts}.")

        def pairs(ours: str, theirs: str) -> tuple[list[float], list[float]]:
            return measure_pairs(lambda: sides[ours]()[1], lambda: sides[theirs]()[1], args.repeats)

        name = f"{Path(model).name}, {counts['plain']} tokens"
        return [
            Comparison(f"{name} ÷ bare loop", *pairs("plain", "bare loop"), GOAL, True),
            Comparison("  ÷ generate + streamer", *pairs("plain", "generate"), GOAL_STREAMER, True),
            Comparison("  as it comes, guessing ÷ bare loop", *pairs("usual", "bare loop"), GOAL, True),
            Comparison("  ÷ the limit", *pairs("plain", "limit"), None, True),
        ]


Measure = Callable[[], tuple[int, float]]
"""Tokens written, and tokens/s after the first."""


Result = TypeVar("Result")
Make = Callable[[str, Any], Callable[..., Result]]


@contextlib.contextmanager
def side(make: Make[Result], model: str, args: Any) -> Iterator[Callable[..., Result]]:
    """What `make` measures, in a process of its own: torch keeps threads for each thread that computes, and
    lets all of them wait less eagerly once there are more than cores."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, _prepare, (make, model, args)) as pool:
        yield lambda *about: pool.submit(_measure, *about).result()


_made: Callable[..., Any]


def _prepare(make: Make[Any], model: str, args: Any) -> None:
    global _made
    _made = make(model, args)


def _measure(*about: Any) -> Any:
    return _made(*about)


def settled(engine: LocalEngine) -> LocalEngine:
    """As it is after some seconds in which nobody asks for anything."""
    while engine.lend(lambda decoder, *_: decoder.loaded.compile_more() or decoder.loaded.page_more()):
        pass
    return engine


def plain(model: str, args: argparse.Namespace) -> Measure:
    engine = open_local(model, LoadOptions(device_map=args.device_map, speculate="off"))
    return partial(_engine_speed, settled(engine), args)


def _usual(model: str, args: argparse.Namespace) -> Measure:
    return partial(_engine_speed, settled(open_local(model, LoadOptions(device_map=args.device_map))), args)


def bare_loop(model: str, args: argparse.Namespace) -> Measure:
    bare = BareLoop(model, args.device_map)
    return partial(bare.speed, bare.encode(args.prompt), args.tokens)


def _generate(model: str, args: argparse.Namespace) -> Measure:
    bare = BareLoop(model, args.device_map)
    return partial(bare.speed_of_generate, bare.encode(args.prompt), args.tokens)


def limit(model: str, args: argparse.Namespace) -> Measure:
    """What the memory bandwidth allows; the tokens are not counted."""
    with open_local(model, LoadOptions(device_map=args.device_map)) as engine:
        active = engine.lend(lambda decoder, *_: decoder.loaded.active_bytes())
    return lambda: (0, 1 / sum(size / read_bandwidth(device) for device, size in active.items()))


SIDES = {"plain": plain, "usual": _usual, "bare loop": bare_loop, "generate": _generate, "limit": limit}


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
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._checkpoint = resolve(model)
        self._model = AutoModelForCausalLM.from_pretrained(
            self._checkpoint.folder, dtype="auto", device_map=device_map
        ).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(self._checkpoint.folder)
        self._read: list[int] = []
        self._cache: Any = None
        """Of what was read last."""

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

    def ttft(self, prompt: list[int], cached: int) -> float:
        """Seconds of the forward that gives the next token, with the first `cached` ones in the KV cache.

        Those of them that were there the last time are not read again, which takes minutes on some CPUs.
        """
        import torch
        from transformers import DynamicCache

        model = self._model
        cache = DynamicCache(config=model.config) if self._cache is None else self._cache
        pairs = zip(self._read, prompt[:cached], strict=False)
        same = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(self._read), cached))
        if same < len(self._read):
            cache.crop(same - len(self._read))
        with torch.inference_mode():
            for at in range(same, cached, 512):
                part = torch.tensor([prompt[at : min(at + 512, cached)]], device=model.device)
                model(input_ids=part, past_key_values=cache)
            self._read, self._cache = prompt, cache
            ids = torch.tensor([prompt[cached:]], device=model.device)
            began = time.perf_counter()
            int(model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits[0, -1].argmax())
        return time.perf_counter() - began

    def speed_of_generate(self, prompt: list[int], limit: int) -> tuple[int, float]:
        """The same from transformers' `generate` in a thread, its text read from a TextIteratorStreamer."""
        import torch
        from transformers import TextIteratorStreamer

        came: list[float] = []

        class Streamer(TextIteratorStreamer):  # type: ignore[misc]
            def put(self, value: Any) -> None:
                super().put(value)
                came.append(time.perf_counter())  # the prompt first, then each token

        ids = torch.tensor([prompt], device=self._model.device)
        streamer = Streamer(self._tokenizer, skip_prompt=True)
        arguments = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "max_new_tokens": limit,
            "do_sample": False,
            "streamer": streamer,
        }
        thread = threading.Thread(target=self._model.generate, kwargs=arguments)
        thread.start()
        for _ in streamer:
            pass
        seconds = time.perf_counter() - came[1]
        thread.join()
        return len(came) - 1, (len(came) - 2) / seconds
