"""The kernel in attention.c, which is compiled when glmchat is installed, if there is gcc."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

LIBRARY = Path(__file__).with_name("libattention.so")
_SIZES, _LARGEST = 32, 256
"""Sizes of a head are multiples of it, and at most so large."""


@functools.cache
def fits(dtype: Any, size: int) -> bool:
    """Whether it attends faster here than torch does, to keys of this type and with heads of this size.

    Where the CPU has AMX, torch's own kernel uses that; how the two compare there has not been measured.
    """
    import torch

    def has(feature: str) -> bool:
        return bool(getattr(torch.cpu, f"_is_{feature}_supported", lambda: False)())

    return (
        dtype == torch.bfloat16
        and size % _SIZES == 0
        and size <= _LARGEST
        and has("avx512_bf16")
        and not has("amx_tile")
        and _kernel() is not None
    )


def takes(*tensors: Any) -> bool:
    """Whether it fits query, key and value [1, heads, tokens, size], and they lie as it reads them."""
    return all(
        fits(t.dtype, t.shape[3]) and t.stride(3) == 1 and not t.stride(2) % 2 and t.device.type == "cpu"
        for t in tensors
    )


def attend(query: Any, key: Any, value: Any, scale: float) -> Any:
    """query [1, heads, n, d], of the last n of m tokens, each of which attends to itself and those before it;
    key, value [1, groups, m, d]: [1, n, heads, d]."""
    _, heads, rows, size = query.shape
    groups, length = key.shape[1:3]
    out = query.new_empty((1, rows, heads, size))
    kernel = _kernel()
    assert kernel is not None
    kernel(
        *(t.data_ptr() for t in (query, key, value, out)),
        *(heads, groups, rows, length, size),
        *(t.stride(dimension) for t in (query, key, value) for dimension in (1, 2)),
        scale,
    )
    return out


@functools.cache
def _kernel() -> Any:
    """glmchat_attend of attention.c; None where it was not compiled, or finds no OpenMP that it knows."""
    try:
        kernel = ctypes.CDLL(str(LIBRARY)).glmchat_attend
    except OSError:
        return None
    kernel.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_ssize_t] * 11 + [ctypes.c_double]
    kernel.restype = None
    return kernel
