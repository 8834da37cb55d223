"""How far transformers is with a checkpoint's weights, in bytes and shards; nothing is drawn here."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from ..events import LoadProgress

OnProgress: TypeAlias = Callable[[LoadProgress], None]
Shards: TypeAlias = Sequence[dict[str, int]]
"""The bytes of each tensor by name, for each file of weights."""


def allot(names: Iterable[str], shards: Shards) -> list[tuple[int, int]]:
    """For each parameter the bytes of its tensors, and the last shard that holds one, counted from 1.

    Parameters are made of the tensor of the same name, or of all below the module that they share: the
    experts of a layer stand one by one in the checkpoint. Parameters of one module share such bytes.
    """
    names = list(names)
    alone = set(names)
    modules = Counter(name.rpartition(".")[0] for name in names)
    found: dict[str, tuple[int, int]] = {}
    for number, tensors in enumerate(shards, 1):
        for tensor, size in tensors.items():
            owner = tensor
            while owner and owner not in alone and owner not in modules:
                owner = owner.rpartition(".")[0]
            if not owner:  # the model has no such part
                continue
            before, _ = found.get(owner, (0, 0))
            found[owner] = before + size, number
    out = []
    for name in names:
        module = name.rpartition(".")[0]
        size, number = found[name] if name in found else found.get(module, (0, 0))
        out.append((size if name in found else size // modules[module], number))
    return out


class WeightsBar:
    """As much of tqdm as transformers uses, reported as LoadProgress at most twenty times a second."""

    def __init__(
        self,
        shards: Shards,
        on_progress: OnProgress,
        on_loaded: Callable[[str], None],
        items: Any = (),
        *_: object,
        **__: object,
    ) -> None:
        self._items = items  # parameters with what they are made of
        self._on_progress = on_progress
        self._on_loaded = on_loaded  # gets the name of each parameter that is made
        self._shards = len(shards)
        self._parts = allot((name for name, _ in items), shards)
        self._total = sum(size for size, _ in self._parts)

    def __iter__(self) -> Iterator[Any]:
        done = shard = 0
        shown = 0.0
        for item, (size, number) in zip(self._items, self._parts, strict=True):
            yield item
            self._on_loaded(item[0])
            done, shard = done + size, max(shard, number)
            now = time.monotonic()
            if now - shown >= 0.05 or done == self._total:
                shown = now
                self._on_progress(LoadProgress("loading weights", done, self._total, shard, self._shards))

    def __enter__(self) -> WeightsBar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None  # set_postfix, set_description, close, refresh …
