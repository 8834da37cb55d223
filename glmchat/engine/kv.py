"""A KV cache that grows in place.

transformers' dynamic layer copies all keys and values for each token; at a few thousand tokens that costs as
much as computing it. Here there is room behind them, and a compiled step, whose shapes must not change with
each token, works on all of it.
"""

from __future__ import annotations

import functools
from typing import Any

GROWTH = 1.5
ROOM_STEP = 128
"""Rooms are multiples of it, which a compiled step divides them into."""
FIRST_ROOM = 2 * ROOM_STEP
"""Never one part alone, for which torch would compile apart."""


def growing(cache: Any, *, side_by_side: bool = False) -> Any:
    """`cache`, a new DynamicCache, with its layers of full attention made to grow in place.

    `side_by_side`: a token's value follows its key, so that both are one vector too.
    """
    from transformers.cache_utils import DynamicLayer

    usual = functools.partial(_layer_class(), side_by_side)
    cache.layers = [usual() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def both(keys: Any, values: Any) -> Any:
    """Each key [..., d] and the value [..., e] of the same token as one vector [..., d + e]; without copying
    where they lie side by side."""
    import torch

    size = keys.shape[-1]
    apart = values.storage_offset() - keys.storage_offset()
    together = keys.untyped_storage().data_ptr() == values.untyped_storage().data_ptr() and apart == size
    if together and keys.stride() == values.stride():
        return keys.as_strided((*keys.shape[:-1], size + values.shape[-1]), keys.stride())
    return torch.cat([keys, values], dim=-1)


def copy_start(source: Any, target: Any, length: int) -> None:
    """Put the first `length` tokens of a cache into an empty one."""
    for number, layer in enumerate(source.layers):
        target.update(layer.keys[..., :length, :], layer.values[..., :length, :], number)


def whole(cache: Any, length: int) -> list[tuple[Any, Any]]:
    """The keys and values of all layers with their room: the same in all, and at least `length` tokens.

    What is written behind the used part counts once `use` says so. A forward that ended between two layers
    may have given room to some of them.
    """
    room = max(layer.room for layer in cache.layers)
    if room < length:
        room = _grown(length)
    return [layer.whole(room) for layer in cache.layers]


def use(cache: Any, length: int) -> None:
    """The first `length` tokens of all layers are what the cache holds."""
    for layer in cache.layers:
        layer.use(length)


def opened(cache: Any, number: int, count: int) -> tuple[Any, Any] | None:
    """The keys and values of a layer [1, groups, room, size], with room for so many tokens more.

    Those count once `close` says so. None where it does not grow in place, or holds nothing yet.
    """
    layers = getattr(cache, "layers", ())
    layer = layers[number] if number < len(layers) else None
    if not isinstance(layer, _layer_class()) or not layer.is_initialized:
        return None
    needed = layer.get_seq_length() + count
    buffers: tuple[Any, Any] = layer.whole(
        max(layer.room, needed if needed <= layer.room else _grown(needed))
    )
    return buffers


def close(cache: Any, number: int, count: int) -> None:
    """So many tokens more are what the layer holds."""
    layer = cache.layers[number]
    layer.use(layer.get_seq_length() + count)


def is_whole(cache: Any) -> bool:
    """Whether `whole` can be asked for: all layers grow in place, and hold something."""
    layers = getattr(cache, "layers", None) or []
    return bool(layers) and all(
        isinstance(layer, _layer_class()) and layer.is_initialized for layer in layers
    )


@functools.cache
def _layer_class() -> Any:
    from transformers.cache_utils import DynamicLayer

    class GrowingLayer(DynamicLayer):  # type: ignore[misc]
        """`keys` and `values` are the used parts of tensors with room for more; to crop cuts nothing off.

        They are made when they are asked for: a kernel that works on `whole` does not, for each token.
        """

        _keys: Any = None
        _values: Any = None
        _length = 0

        def __init__(self, side_by_side: bool) -> None:
            super().__init__()
            self._side_by_side = side_by_side

        @property
        def keys(self) -> Any:
            return self._keys if self._keys is None else self._keys.narrow(-2, 0, self._length)

        @keys.setter
        def keys(self, keys: Any) -> None:
            self._keys, self._length = keys, 0 if keys is None else keys.shape[-2]

        @property
        def values(self) -> Any:
            return self._values if self._values is None else self._values.narrow(-2, 0, self._length)

        @values.setter
        def values(self, values: Any) -> None:
            self._values = values

        def lazy_initialization(self, keys: Any, values: Any) -> None:
            self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

        def update(self, keys: Any, values: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
            if not self.is_initialized:
                self.lazy_initialization(keys, values)
            begin = self._length
            end = begin + keys.shape[-2]
            if self.room < end:
                self._move(_grown(end) if self.room else _rounded(max(end, FIRST_ROOM)), keys, values)
            self._keys.narrow(-2, begin, end - begin).copy_(keys)
            self._values.narrow(-2, begin, end - begin).copy_(values)
            self._length = end
            return self.keys, self.values

        def get_seq_length(self) -> int:
            return self._length

        @property
        def room(self) -> int:
            return 0 if self._keys is None else int(self._keys.shape[-2])

        def whole(self, room: int) -> tuple[Any, Any]:
            if self.room != room:
                self._move(room, self._keys, self._values)
            return self._keys, self._values

        def use(self, length: int) -> None:
            self._length = length

        def _move(self, room: int, keys: Any, values: Any) -> None:
            """To where there is room for so many tokens like those in `keys` and `values`."""
            sizes = [keys.shape[-1], values.shape[-1]]
            if self._side_by_side:
                new = _zeros(keys, room, sum(sizes)).split(sizes, dim=-1)
            else:
                new = [_zeros(t, room, size) for t, size in zip((keys, values), sizes, strict=True)]
            if self._length:
                for there, here in zip(new, (self.keys, self.values), strict=True):
                    there[..., : self._length, :] = here
            self._keys, self._values = new  # both or none: there may be no memory for the second

        def crop(self, tokens_to_remove: int) -> None:
            if tokens_to_remove > 0:
                super().crop(tokens_to_remove)  # which depends on the version
            else:
                self._length = max(0, self._length + tokens_to_remove)

    return GrowingLayer


def _grown(length: int) -> int:
    return _rounded(int(length * GROWTH))


def _rounded(room: int) -> int:
    return room + -room % ROOM_STEP


def _zeros(like: Any, room: int, size: int) -> Any:
    """A tensor for `room` tokens of this size, otherwise `like` in shape.

    Never NaN: who attends to all of it with weights of 0 multiplies by what is there.
    """
    return like.new_zeros((*like.shape[:-2], room, size))
