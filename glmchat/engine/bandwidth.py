"""How fast a device reads its memory, which bounds decoding: a token has to read the weights that it uses."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from .memory import free_memory
from .resident import onto_huge_pages

MOST_BYTES = 1 << 29
"""Much larger than any cache."""
TRIES = 7


def read_bandwidth(device: str) -> float:
    """Bytes per second, the best of several tries. `device`: `cpu`, read by torch's threads, or `cuda:0` …"""
    import torch

    if device == "cpu":
        numbers = torch.ones(min(MOST_BYTES, free_memory() // 4) // 4)
        for _ in onto_huge_pages([numbers.data_ptr()]):  # as the weights are that are read
            pass
        readers = (numbers.max, lambda: torch.dot(numbers, numbers))  # which is faster depends on the CPU
        return numbers.nbytes / min(map(_shortest, readers))
    backend: Any = getattr(torch, device.partition(":")[0])
    source = torch.ones(MOST_BYTES // 4, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        backend.synchronize()

    return 2 * source.nbytes / _shortest(copy)  # reads and writes as much


def _shortest(work: Callable[[], object]) -> float:
    """Seconds; the first run, which also wakes threads, is not counted."""
    work()
    times = []
    for _ in range(TRIES):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
