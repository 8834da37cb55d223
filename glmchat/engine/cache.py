"""Reuse of the KV cache between turns, by the longest common prefix of tokens.

A prompt of the next turn seldom just continues the last one: the template drops old reasoning. So the
cache is cut back to what both share. It must never hold the whole prompt: the last token is always
computed anew, because its logits are what comes next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


class PrefixCache:
    """The KV cache of the last turn and the token ids that it holds.

    `new_cache` makes an empty cache of transformers. Only caches that can be cut anywhere are reused:
    all layers dynamic and with full attention.
    """

    def __init__(self, new_cache: Callable[[], Any]) -> None:
        self._new_cache = new_cache
        self._ids: list[int] = []
        self._cache: Any = None

    def begin(self, prompt: Sequence[int]) -> tuple[Any, int]:
        """A cache for `prompt` and how many of its first tokens it already holds, at most all but one."""
        cache, held = self._cache, self._ids
        self.drop()  # until `keep` says that the turn left it sound
        if cache is None or not _croppable(cache):
            return self._new_cache(), 0
        common = _common_prefix(held, prompt[: len(prompt) - 1])
        if common == 0:
            return self._new_cache(), 0
        cache.crop(common - len(held))  # negative: how many to remove; 0 removes none
        return cache, common

    def keep(self, cache: Any, ids: list[int]) -> None:
        """Remember `cache`, which holds exactly `ids`, for the next turn."""
        self._cache, self._ids = cache, ids

    def drop(self) -> None:
        """Forget it, as after a fault in the middle of a forward, which leaves layers of unequal length."""
        self._cache, self._ids = None, []


def _croppable(cache: Any) -> bool:
    layers: list[Any] = getattr(cache, "layers", None) or []
    return bool(layers) and all(type(layer).__name__ == "DynamicLayer" for layer in layers)


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    for position, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return position
    return min(len(a), len(b))
