"""Our own decode loop: prefill in chunks over what the KV cache holds, then token by token, or several at
once where they were guessed ahead.

One place for sampling, stopping, cancelling, speculation and reuse of the cache. It stands on the model's
forward and transformers' cache classes, and works on tensors without importing torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from . import native
from .cache import Branch, PrefixCache, has_states, is_croppable
from .draft import LONGEST_LOOKUP, LONGEST_MTP, Drafter, Lookup, Mtp, Pace
from .loaded import Stopped

if TYPE_CHECKING:
    from .loaded import LoadedModel
    from .sampling import Sampler

CHUNK_CPU, CHUNK_AVX2, CHUNK_GPU, CHUNK_OFFLOADED = 512, 256, 8192, 4096
"""Prompt tokens per prefill forward. Fixed, not adapted to the machine's speed, so that the same prompt gives
the same numbers; large where a forward has to move weights between devices, or a GPU to read all experts;
small where a CPU computes slowly and who cancels would wait. They are halved where a GPU has no memory for so
many.
"""
CHUNK_WHOLE = 1 << 30
"""What holds every prompt, for models with states in place of keys: the convolutions of some know nothing of
the tokens before a chunk, as transformers runs them."""
CHUNK_AHEAD, CHUNK_AHEAD_HYBRID = 64, 1024
"""The same, where nobody waits for it: a message that is sent meanwhile waits for one of them. Where experts
are in main memory even a few tokens go to most of them, and what was begun ends with a layer."""


class Decoder:
    """Decodes one sequence after the other on a loaded model; KV caches and experience live on."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.prefixes = PrefixCache(loaded.new_cache, loaded.spare_memory(), loaded.copy)
        cache = loaded.new_cache()
        self.chunk = CHUNK_WHOLE if has_states(cache) else _chunk(loaded)
        self.chunk_ahead = CHUNK_AHEAD_HYBRID if loaded.hybrid else CHUNK_AHEAD
        self.reuses = is_croppable(cache)
        """What was computed in one turn serves the next."""
        self.pace: Pace | None = None
        if loaded.speculates and loaded.turns_wide is None and self.reuses:
            self.pace = Pace(LONGEST_LOOKUP if loaded.mtp is None else LONGEST_MTP)

    def begin(self, prompt: Sequence[int], *, guess: bool = True) -> Decoding:
        """A sequence that begins with `prompt`. Without `guess` no token is guessed ahead."""
        return Decoding(self, prompt, guess=guess and self.pace is not None)


def _chunk(loaded: LoadedModel) -> int:
    if loaded.offloaded:
        return CHUNK_OFFLOADED
    if loaded.input_device.type != "cpu":
        return CHUNK_GPU
    slow = loaded.dtype == "bfloat16" and native.usable() and native.build() == native.AVX2
    return CHUNK_AVX2 if slow else CHUNK_CPU


class Decoding:
    """One sequence. `branch` holds what the model has read of it, exactly, whenever no forward runs."""

    def __init__(self, decoder: Decoder, prompt: Sequence[int], *, guess: bool) -> None:
        self._decoder = decoder
        self._loaded = decoder.loaded
        self._prefixes = decoder.prefixes
        self._pace = decoder.pace
        self._prompt = prompt
        self.branch: Branch = decoder.prefixes.begin(prompt)
        if self.branch.wide and len(self.branch.ids) <= (self._loaded.turns_wide or 0):
            self.branch = Branch(self._loaded.new_cache())
        self.cached = len(self.branch.ids)
        """How many of the prompt's tokens need not be computed."""
        self.guessed = self.accepted = 0
        self._drafter: Drafter | None = None
        if not guess or decoder.loaded.mtp is None:
            self.branch.drafts = None
        if guess:
            mtp = decoder.loaded.mtp
            self._drafter = Lookup(self.branch.ids) if mtp is None else Mtp(mtp, self._loaded, self.branch)

    def prefill(self, cancelled: Callable[[], bool], *, chunk: int | None = None) -> Iterator[int]:
        """Compute what the cache lacks of the prompt, `chunk` tokens at once; yields how many are done.

        Raises ModelError for a token that the weights do not have.
        """
        while (done := len(self.branch.ids)) < len(self._prompt) and not cancelled():
            most = min(chunk or self._decoder.chunk, self._decoder.chunk)
            part = list(self._prompt[done : done + most])
            if max(part) >= self._loaded.vocabulary:  # of which a GPU would never recover
                raise ModelError(
                    "The tokenizer knows more tokens than the weights, which have "
                    f"{self._loaded.vocabulary:,}; the prompt has one of those. Fetch both from one place."
                )
            try:
                with self._loaded.stoppable(cancelled):
                    _, states = self._forward(self._loaded.ids(part), part)
            except Stopped:
                self.branch.mend()
                return
            except self._loaded.out_of_memory:
                if len(part) <= CHUNK_AHEAD or not is_croppable(self.branch.cache):
                    raise
                fits = False
            else:
                fits = True
            if not fits:  # and the error, which held what was computed, is gone
                self.branch.mend()
                self._loaded.free_memory()
                self._decoder.chunk = len(part) // 2
                continue
            if self._drafter is not None:
                self._drafter.read(part, states)
            yield len(self.branch.ids)

    def tokens(self, sample: Sampler, most: int | None) -> Iterator[int]:
        """Sampled ids without end, of which the caller takes `most`; all of the prompt must be prefilled.

        Raises ModelError where the model gives no numbers: the likeliest token would be the first for ever.
        """
        if bool(self._next_logits().isnan().any()):
            raise ModelError(
                f"The model gives no numbers (NaN): its weights are broken, or do not suit "
                f"{self._loaded.dtype}; fetch them anew, or try --dtype float32."
            )
        if self._drafter is not None and self._pace is not None:
            yield from self._guided(sample, most, self._drafter, self._pace)
        logits, loaded = self._next_logits(), self._loaded
        while True:
            token = sample(logits, loaded.ids(self.branch.ids)[0] if sample.needs_history else None)
            token_id = int(token)
            yield token_id
            logits, _ = self._forward(token.view(1, 1), [token_id])

    def _guided(self, sample: Sampler, most: int | None, drafter: Drafter, pace: Pace) -> Iterator[int]:
        """The same by guesses: forwards of a token and what may follow it, cut back to what did."""
        token_id = next(sample.each(self._next_logits()))
        left = 1 << 60 if most is None else most
        while True:
            yield token_id
            left -= 1
            began = time.perf_counter()
            guesses = drafter.draft(token_id, min(pace.choose(), left - 1))
            fed = [token_id, *guesses]
            logits, states = self._forward(self._loaded.ids(fed), fed, rows=len(fed))
            choices = sample.each(logits)
            token_id = next(choices)
            seconds = time.perf_counter() - began
            right = 0
            self.guessed += len(guesses)
            while right < len(guesses) and token_id == guesses[right]:
                right += 1
                self.accepted += 1
                yield token_id
                token_id = next(choices)
            left -= right
            pace.observe(len(guesses), right, seconds)
            if right < len(guesses):
                self.branch.rewind(len(guesses) - right)
            drafter.read(fed[: right + 1], states if states is None else states[:, : right + 1])

    def keep(self, *, settled: bool = False) -> None:
        """The sequence is over; what was computed may serve the next. `settled`: as much of it as can be."""
        if self._drafter is not None:
            if settled:
                self._drafter.settle()
            if not self._drafter.settled:
                self.branch.last = None
        if self.branch.last is not None:  # in memory of their own, not in that of a whole chunk's
            logits, state = self.branch.last
            self.branch.last = logits.clone(), state if state is None else state.clone()
        self._prefixes.keep(self.branch)

    def _forward(self, ids: Any, fed: list[int], rows: int = 1) -> tuple[Any, Any]:
        wide = self._loaded.turns_wide
        if wide is not None and len(self.branch.ids) <= wide < len(self.branch.ids) + len(fed):
            fed = self.branch.ids + fed  # all that was read before
            ids = self._loaded.ids(fed)
            self.branch = Branch(self._loaded.new_cache(), wide=True)
        logits, states = self._loaded.forward(ids, self.branch.cache, rows)
        self.branch.ids += fed
        self.branch.last = logits[-1:], states if states is None else states[:, -1:]
        return logits, states

    def _next_logits(self) -> Any:
        """Of the token after all that was read."""
        assert self.branch.last is not None
        return self.branch.last[0]
