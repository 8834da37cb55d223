"""Chooses the next token from logits. Works on tensors it is given and imports no torch itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..glm.checkpoints import SamplingDefaults
from .base import GenerationOptions

_SMALLEST = 1e-6
"""A temperature below it would make infinities of logits."""
NUCLEUS_CANDIDATES = 1024
"""Tokens sorted first for top_p; the whole vocabulary is sorted only if they do not reach it."""


class Sampler:
    """Greedy or random choice, by the person's options over the checkpoint's defaults.

    Greedy when asked, at temperature 0, or when neither side asks for sampling. The filters apply in
    the order temperature, top_k, top_p, min_p; none takes the likeliest token out. `generator` makes the
    source of random numbers for the device that the logits turn out to be on.
    """

    def __init__(
        self, defaults: SamplingDefaults, options: GenerationOptions, generator: Callable[[Any], Any]
    ) -> None:
        def pick(own: Any, default: Any, neutral: Any) -> Any:
            return own if own is not None else default if default is not None else neutral

        self._new_generator = generator
        self._generator: Any = None
        self._temperature = float(pick(options.temperature, defaults.temperature, 1.0))
        self._top_p = max(_SMALLEST, float(pick(options.top_p, defaults.top_p, 1.0)))
        self._top_k = int(pick(options.top_k, defaults.top_k, 0))
        self._min_p = min(1.0, float(pick(defaults.min_p, None, 0.0)))
        self._penalty = float(pick(defaults.repetition_penalty, None, 1.0))
        asked = any(v is not None for v in (options.temperature, options.top_p, options.top_k))
        self.greedy = options.greedy or self._temperature < _SMALLEST or not (asked or defaults.do_sample)
        self.needs_history = self._penalty != 1.0

    def __call__(self, logits: Any, history: Any = None) -> Any:
        """The chosen id as a tensor of shape [1]; `logits` is [1, vocabulary], `history` [n] ids so far."""
        if self.needs_history:
            logits = _penalise(logits.float(), history, self._penalty)
        if self.greedy:
            return logits.argmax(-1)
        if self._generator is None:
            self._generator = self._new_generator(logits.device)
        logits = logits.float() / self._temperature
        order = None
        if 0 < self._top_k < logits.shape[-1]:
            logits, order = logits.topk(self._top_k)
        probabilities = logits.softmax(-1)
        if self._top_p < 1.0:
            probabilities, order = _nucleus(probabilities, order, self._top_p)
        if self._min_p > 0.0:
            floor = probabilities.amax(-1, keepdim=True) * self._min_p
            probabilities = probabilities.masked_fill(probabilities < floor, 0.0)
        chosen = probabilities.multinomial(1, generator=self._generator)
        return (chosen if order is None else order.gather(-1, chosen)).squeeze(-1)

    def each(self, logits: Any) -> Iterator[int]:
        """The chosen id of each row of `logits` [n, vocabulary], one after the other as they are asked for.

        No random number is drawn for a row that is not, so that a seed gives the same text however many
        tokens were guessed ahead.
        """
        if self.greedy:
            yield from logits.argmax(-1).tolist()
        else:
            for row in range(len(logits)):
                yield int(self(logits[row : row + 1]))


def _nucleus(probabilities: Any, order: Any, top_p: float) -> tuple[Any, Any]:
    """The likeliest tokens that together reach `top_p`, and their ids. `order` means: sorted already."""
    if order is None:
        probabilities, order = _sorted_head(probabilities, top_p)
    before = probabilities.cumsum(-1) - probabilities
    return probabilities.masked_fill(before >= top_p, 0.0), order


def _sorted_head(probabilities: Any, top_p: float) -> tuple[Any, Any]:
    if probabilities.shape[-1] > NUCLEUS_CANDIDATES:
        head, order = probabilities.topk(NUCLEUS_CANDIDATES)
        if head.sum(-1).min() >= top_p:
            return head, order
    head, order = probabilities.sort(-1, descending=True)
    return head, order


def _penalise(logits: Any, history: Any, penalty: float) -> Any:
    seen = history.unique().unsqueeze(0)
    score = logits.gather(-1, seen)
    return logits.scatter(-1, seen, (score / penalty).where(score >= 0, score * penalty))
