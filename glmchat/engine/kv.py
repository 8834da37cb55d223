"""A KV cache that grows in place.

transformers' dynamic layer copies all keys and values for each token; at a few thousand tokens that costs as
much as computing it.
"""

from __future__ import annotations

import functools
from typing import Any

FIRST_ROOM = 256
"""Tokens."""
GROWTH = 1.5


def growing(cache: Any) -> Any:
    """`cache`, a new DynamicCache, with its layers of full attention made to grow in place."""
    from transformers.cache_utils import DynamicLayer

    cache.layers = [_layer_class()() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def copy_start(source: Any, target: Any, length: int) -> None:
    """Put the first `length` tokens of a cache into an empty one."""
    for number, layer in enumerate(source.layers):
        target.update(layer.keys[..., :length, :], layer.values[..., :length, :], number)


@functools.cache
def _layer_class() -> Any:
    from transformers.cache_utils import DynamicLayer

    class GrowingLayer(DynamicLayer):  # type: ignore[misc]
        """`keys` and `values` are the used parts of tensors with room for more; to crop cuts nothing off."""

        keys: Any
        values: Any

        def update(self, keys: Any, values: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
            if not self.is_initialized:
                self.lazy_initialization(keys, values)
                self._keys = self._values = None
            begin = self.get_seq_length()
            end = begin + keys.shape[-2]
            if self._keys is None or end > self._keys.shape[-2]:
                room = max(end, FIRST_ROOM if self._keys is None else int(end * GROWTH))
                self._keys = _with_room(keys, self.keys, begin, room)
                self._values = _with_room(values, self.values, begin, room)
            self._keys[..., begin:end, :] = keys
            self._values[..., begin:end, :] = values
            self.keys, self.values = self._keys[..., :end, :], self._values[..., :end, :]
            return self.keys, self.values

        def reset(self) -> None:
            super().reset()
            self._keys = self._values = None

    return GrowingLayer


def _with_room(like: Any, held: Any, used: int, room: int) -> Any:
    """A tensor for `room` tokens, otherwise `like` in shape, that begins with the `used` ones in `held`."""
    shape = list(like.shape)
    shape[-2] = room
    out = like.new_empty(shape)
    if used:
        out[..., :used, :] = held
    return out
