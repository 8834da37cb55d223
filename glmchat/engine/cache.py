"""Reuse of the KV cache between turns, by the longest common prefix of tokens.

A prompt of the next turn seldom just continues the last one: the template drops old reasoning. So the
cache is cut back to what both share, and to all but the last token of the prompt, whose logits are what comes
next. Only where these are remembered is nothing computed: for a prompt that was read ahead to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .kv import copy_start

MOST_BRANCHES = 8
REWOUND = 16
"""An MTP cache that lacks more tokens than this is not worth computing them anew."""

_BLOCK = 256
"""Tokens that are compared in one go: one by one takes milliseconds for long conversations."""


@dataclass(slots=True, eq=False)
class Branch:
    """A KV cache of transformers, and the token ids that it holds."""

    cache: Any
    ids: list[int] = field(default_factory=list)
    drafts: Any = None
    """The MTP layer's own cache for some of these tokens; None where nothing was drafted by it."""
    drafts_from: int = 0
    """The first token that is in there."""
    last: tuple[Any, Any] | None = None
    """What the model gave for the last of these tokens: logits [1, vocab], and its state [1, 1, hidden] where
    there is an MTP layer. None: not known."""

    wide: bool = False
    """It was computed with the rotary frequencies for long contexts; see LoadedModel.turns_wide."""

    @property
    def nbytes(self) -> int:
        """What it takes, with the room to grow."""
        caches = [self.cache] + [self.drafts] * (self.drafts is not None)
        tensors = [t for c in caches for layer in c.layers for t in (layer.keys, layer.values)]
        return sum(t.untyped_storage().nbytes() for t in tensors if t is not None)

    def rewind(self, count: int) -> None:
        """Take the last `count` tokens out."""
        if count:
            self.last = None
        self.cache.crop(-count)
        del self.ids[len(self.ids) - count :]

    def ends_with(self, prompt: Sequence[int]) -> bool:
        """Whether it holds just this prompt, and all that is needed to go on from there."""
        return self.last is not None and self.ids == prompt

    def mend(self) -> None:
        """Make the cache hold what `ids` say, after a forward that ended between two layers.

        One that cannot be cut anywhere stays as it is, and is not kept for another turn either.
        """
        for layer in self.cache.layers if is_croppable(self.cache) else ():
            layer.crop(min(0, len(self.ids) - layer.get_seq_length()))


class PrefixCache:
    """The KV caches of the newest conversations, or branches of one.

    `new_cache` makes an empty cache of transformers, and `copy` gives it the first tokens of another. Only
    caches that can be cut anywhere are reused: all layers dynamic and with full attention. All but the newest
    are given up when they are more than MOST_BRANCHES, or together larger than `limit` bytes.
    """

    def __init__(
        self,
        new_cache: Callable[[], Any],
        limit: int,
        copy: Callable[[Any, Any, int], None] = copy_start,
    ) -> None:
        self._new_cache = new_cache
        self._copy = copy
        self._limit = limit
        self._branches: list[Branch] = []  # the newest last

    def begin(self, prompt: Sequence[int]) -> Branch:
        """A branch that holds some of the first tokens of `prompt`; all of them only if it `ends_with` it.

        It is taken out until `keep` says that the turn left it sound: a fault in the middle of a forward
        leaves layers of unequal length. One that shares less than half of what it holds is another
        conversation, which is copied from and stays.
        """
        for branch in self._branches:
            if branch.ends_with(prompt):
                self._branches.remove(branch)
                return branch
        wanted = prompt[: len(prompt) - 1]
        shared = [common_prefix(branch.ids, wanted) for branch in self._branches]
        common = max(shared, default=0)
        if common == 0:
            return Branch(self._new_cache())
        alike = [b for b, count in zip(self._branches, shared, strict=True) if count == common]
        best = min(alike, key=lambda branch: len(branch.ids))  # of which the least is cut off
        size = best.nbytes * common // len(best.ids)
        if 2 * common < len(best.ids) and size + self._nbytes <= self._limit:
            branch = Branch(self._new_cache(), best.ids[:common], wide=best.wide)
            self._copy(best.cache, branch.cache, common)
            return branch
        self._branches.remove(best)
        if best.drafts is not None:
            # Its next entry needs the trunk's state of the last token, so that one is computed again.
            end = best.drafts_from + best.drafts.get_seq_length()
            length = min(common - 1, end)
            if length < best.drafts_from or common - length > REWOUND:
                best.drafts = None
            else:
                common = length
                best.drafts.crop(min(0, length - end))
        best.rewind(len(best.ids) - common)
        return best

    def keep(self, branch: Branch) -> None:
        """Remember a branch, whose cache holds exactly its ids, for the next turn.

        Not one of a turn that ended before it came further than another: it would only push those out.
        """
        if not is_croppable(branch.cache) or not branch.ids:
            return
        if branch.last is None:
            size = len(branch.ids)
            branch = next((b for b in self._branches if common_prefix(b.ids, branch.ids) == size), branch)
        if branch in self._branches:
            self._branches.remove(branch)
        self._branches.append(branch)
        while len(self._branches) > MOST_BRANCHES or (len(self._branches) > 1 and self._nbytes > self._limit):
            del self._branches[0]

    def drop(self) -> None:
        """Forget all of them."""
        self._branches.clear()

    @property
    def _nbytes(self) -> int:
        return sum(branch.nbytes for branch in self._branches)


def is_croppable(cache: Any) -> bool:
    """Whether it can be cut back to any length."""
    layers: list[Any] = getattr(cache, "layers", None) or []
    return bool(layers) and all(type(layer).__name__ in ("DynamicLayer", "GrowingLayer") for layer in layers)


def has_states(cache: Any) -> bool:
    """Whether some of its layers hold a state in place of the keys and values of all tokens."""
    layers: list[Any] = getattr(cache, "layers", None) or []
    return any("LinearAttention" in type(layer).__name__ for layer in layers)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many of their first tokens are the same."""
    at, end = 0, min(len(a), len(b))
    while at < end and a[at : at + _BLOCK] == b[at : at + _BLOCK]:
        at += _BLOCK
    return next((n for n in range(at, end) if a[n] != b[n]), end)
