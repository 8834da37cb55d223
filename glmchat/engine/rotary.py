"""RoPE's angles on a CPU: for one position alone they take as long as a layer of a small model."""

from __future__ import annotations

import functools
from typing import Any

_BLOCK, _BLOCKS = 256, 64
"""Positions for which they are computed at once, and how many such are kept."""


class Angles:
    """cos and sin by a model's rotary embedding."""

    def __init__(self, rotary: Any, like: Any) -> None:
        """Of the type of `like`, and where it is."""
        self._rotary, self._like = rotary, like
        self._fixed = getattr(rotary, "rope_type", None) == "default"
        """A position's do not depend on how many there are."""
        self._block = functools.lru_cache(_BLOCKS)(self._computed_block)

    def of(self, begin: int, count: int) -> tuple[Any, Any]:
        """Of so many positions from `begin` on: each [1, count, turned]."""
        import torch

        if not self._fixed:
            return self._computed(begin, count)
        first, last = begin // _BLOCK, (begin + count - 1) // _BLOCK
        blocks = [self._block(number) for number in range(first, last + 1)]
        cos, sin = (
            blocks[0] if first == last else (torch.cat(parts, 1) for parts in zip(*blocks, strict=True))
        )
        return tuple(t.narrow(1, begin - first * _BLOCK, count) for t in (cos, sin))  # type: ignore[return-value]

    def _computed_block(self, number: int) -> tuple[Any, Any]:
        """Always the same ones together, so that a position's angles never depend on what was asked for."""
        return self._computed(number * _BLOCK, _BLOCK)

    def _computed(self, begin: int, count: int) -> tuple[Any, Any]:
        import torch

        positions = torch.arange(begin, begin + count, device=self._like.device)[None]
        angles: tuple[Any, Any] = self._rotary(self._like, positions)
        return angles
