"""How fast a loaded model is on this machine, against what the memory of the machine allows.

Prefill and decode run on random text, token by token: how many guesses are right depends on the text, so
guessing ahead is measured on a real turn. What else a turn costs (template, parsing, events) is left out.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from ..errors import ModelError, UsageError
from ..events import TurnDone
from ..glm.checkpoints import Checkpoint, SamplingDefaults
from ..messages import Conversation, Message
from .bandwidth import read_bandwidth
from .base import CLOSED, GenerationOptions, ModelInfo
from .decode import Decoder
from .local import LocalEngine
from .sampling import Sampler

LENGTHS = (128, 1024, 4096, 8192)
"""Tokens of context, where nobody chose."""
QUESTION = "Write a list of three colours."
MOST_TOKENS, FEWEST_TOKENS, ENOUGH_S = 64, 8, 5.0
"""What is decoded after each context: the fewest tokens that tell something, more while time allows."""
TURN_TOKENS, TURN_S = 200, 10.0
"""Where a turn with guesses ahead ends."""

OnStep = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class AtLength:
    """What was measured with so many tokens of context; medians over the repeats."""

    context_tokens: int
    prefill_tokens_per_s: float
    ttft_s: float
    """Seconds from the prompt's token ids to the first new one."""
    decode_tokens_per_s: float
    kv_cache_bytes: int
    limit_tokens_per_s: float | None
    """Decode speed if it took no longer than to read weights and KV cache; None for offloaded weights."""
    limit_share: float | None
    """How much of it is reached, 1 for all."""


@dataclass(frozen=True, slots=True)
class Guessing:
    """A real turn with tokens guessed ahead; medians over the repeats."""

    decode_tokens_per_s: float
    tokens_per_forward: float


@dataclass(frozen=True, slots=True)
class Measured:
    """All that was measured. Sizes are in bytes."""

    info: ModelInfo
    threads: int
    """That compute on the CPU."""
    attention: str
    """What computes it, as transformers names it; `glmchat_native` is the kernel of our own."""
    weights_bytes: int
    """All weights, those of an MTP layer that guesses included."""
    active_bytes: int
    """Weights that a decode forward reads: all but the embedding table and the experts that a token skips."""
    bandwidth: dict[str, float]
    """Bytes per second, of each device that holds weights; empty for offloaded weights."""
    lengths: tuple[AtLength, ...]
    guessing: Guessing | None
    """None where the engine does not guess."""
    peak_memory: dict[str, int]
    """The most that was in use while it was loaded and measured: of `process` the resident set, by GPU."""


def choose_lengths(wanted: Sequence[int], name: str, context: int) -> tuple[int, ...]:
    """The lengths to measure: those `wanted`, or of the usual ones those that leave room to decode.

    `context` is the model's context length in tokens, 0 if unknown. Raises: UsageError when one is too long.
    """
    most = context - FEWEST_TOKENS if context else max((*wanted, *LENGTHS))
    if too_long := [n for n in wanted if n > most]:
        raise UsageError(
            f"--lengths {too_long[0]}: the context of {name} holds {context:,} tokens; "
            f"{most:,} is the most that leaves room to decode."
        )
    return tuple(wanted) or tuple(n for n in LENGTHS if n <= most) or (most,)


def measure(
    engine: LocalEngine,
    lengths: Sequence[int] = (),
    *,
    repeats: int = 3,
    on_step: OnStep = lambda _: None,
) -> Measured:
    """Measure the model of `engine`; `on_step` hears what comes next.

    Raises: UsageError for a context length that the model does not have; ModelError when it cannot be run.
    """
    info = engine.info
    chosen = choose_lengths(lengths, info.name, info.context_length)
    guesses = engine.lend(lambda decoder, *_: decoder.pace is not None)
    guessing = _turns(engine, repeats, on_step) if guesses else None

    def job(decoder: Decoder, checkpoint: Checkpoint, closing: Callable[[], bool]) -> Measured:
        bench = _Bench(decoder, checkpoint, closing, on_step)
        bench.warm_up()
        runs = [bench.repeat(length, repeats) for length in chosen]
        loaded = decoder.loaded
        peak = loaded.peak_memory()
        active = loaded.active_bytes()
        on_step("memory bandwidth")
        bandwidth = {} if loaded.offloaded else {device: read_bandwidth(device) for device in sorted(active)}
        return Measured(
            info=info,
            threads=loaded.threads,
            attention=loaded.attention,
            weights_bytes=loaded.weights_bytes,
            active_bytes=sum(active.values()),
            bandwidth=bandwidth,
            lengths=tuple(_at_length(of_length, active, bandwidth) for of_length in runs),
            guessing=guessing,
            peak_memory=peak,
        )

    return engine.lend(job)


@dataclass(frozen=True, slots=True)
class _Run:
    """One prefill, and the decode after it."""

    context_tokens: int
    ttft_s: float
    decode_tokens_per_s: float
    kv_bytes: Counter[str]
    """By device, after the prefill."""


class _Bench:
    def __init__(
        self, decoder: Decoder, checkpoint: Checkpoint, closing: Callable[[], bool], on_step: OnStep
    ) -> None:
        self._decoder = decoder
        self._checkpoint = checkpoint
        self._closing = closing
        self._on_step = on_step
        tokenizer = checkpoint.tokenizer
        control = tokenizer.get_added_tokens_decoder()
        vocabulary = tokenizer.get_vocab(with_added_tokens=False).values()
        self._text = sorted(set(vocabulary) - set(control))
        self._sample = Sampler(SamplingDefaults(), GenerationOptions(greedy=True), lambda _: None)

    def warm_up(self) -> None:
        """A short run, which wakes kernels and threads, with weights where they are after some seconds."""
        self._on_step("warming up")
        while not self._closing() and self._decoder.loaded.page_more():
            pass
        self._run(FEWEST_TOKENS, FEWEST_TOKENS)

    def repeat(self, length: int, repeats: int) -> list[_Run]:
        """So many runs with this context."""
        runs = []
        for number in range(1, repeats + 1):
            self._on_step(f"{length:,} tokens of context, run {number} of {repeats}")
            runs.append(self._run(length, MOST_TOKENS))
        return runs

    def _run(self, length: int, most: int) -> _Run:
        prompt = random.Random(length).choices(self._text, k=length)
        if context := self._checkpoint.context_length:
            most = min(most, context - length)
        began = time.perf_counter()
        decoding = self._decoder.begin(prompt, guess=False)
        for _ in decoding.prefill(self._closing):
            pass
        self._check_open()
        kv_bytes: Counter[str] = Counter()
        for layer in decoding.branch.cache.layers:
            for tensor in (layer.keys, layer.values):
                kv_bytes[str(tensor.device)] += tensor.nbytes
        with self._decoder.loaded.decoding():
            first = now = 0.0
            for made, _ in enumerate(decoding.tokens(self._sample, None)):
                now = time.perf_counter()
                first = first or now
                if made == most - 1 or (made >= FEWEST_TOKENS - 1 and now - first > ENOUGH_S):
                    break
                self._check_open()
        return _Run(length, first - began, made / (now - first), kv_bytes)

    def _check_open(self) -> None:
        if self._closing():
            raise ModelError(CLOSED)


def _at_length(runs: list[_Run], active: Counter[str], bandwidth: dict[str, float]) -> AtLength:
    length, kv_bytes = runs[0].context_tokens, runs[0].kv_bytes
    ttft, decode = median(r.ttft_s for r in runs), median(r.decode_tokens_per_s for r in runs)
    limit = None
    if bandwidth:  # one device after the other reads its part
        limit = 1 / sum((active[device] + kv_bytes[device]) / speed for device, speed in bandwidth.items())
    return AtLength(
        context_tokens=length,
        prefill_tokens_per_s=length / ttft,
        ttft_s=ttft,
        decode_tokens_per_s=decode,
        kv_cache_bytes=sum(kv_bytes.values()),
        limit_tokens_per_s=limit,
        limit_share=decode / limit if limit else None,
    )


def _turns(engine: LocalEngine, repeats: int, on_step: OnStep) -> Guessing | None:
    """The same turn again and again: how many guesses pay is learned in the first, which is not counted."""
    question = Conversation([Message("user", QUESTION)])
    options = GenerationOptions(seed=0, max_tokens=TURN_TOKENS)
    speeds, per_forward = [], []
    for number in range(repeats + 1):
        on_step(f"a turn with guesses ahead, run {number} of {repeats}" if number else "warming up")
        enough = threading.Event()
        timer = threading.Timer(TURN_S, enough.set)
        timer.daemon = True
        timer.start()
        *_, done = engine.generate(question, options=options, cancel=enough)
        timer.cancel()
        assert isinstance(done, TurnDone)
        tokens = done.usage.completion_tokens
        if number and done.timing.decode_tokens_per_s:
            speeds.append(done.timing.decode_tokens_per_s)
            per_forward.append(tokens / (tokens - done.usage.accepted_tokens))
    return Guessing(median(speeds), median(per_forward)) if speeds else None
