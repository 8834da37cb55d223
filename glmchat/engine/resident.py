"""Keeps the memory of a load close to that of the weights, and puts it onto huge pages; on Linux, elsewhere
nothing is done.

Two things make it twice as much. The checkpoint's files are mapped, and what is put together from several of
their tensors, as experts are, is a copy; the pages it was made from stay in the resident set for as long as
any other weight lies in the file. And freed blocks of some megabytes stay in the heap, with holes between.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import mmap
import os
import sys
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_DONTNEED, _COLLAPSE = 4, 25  # MADV_…
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_… of mallopt
_SMALL, _USUAL = 1 << 20, 1 << 25
_HUGE_PAGE, _STEP = 1 << 21, 1 << 24
_MUCH = 1 << 23  # bytes that are given back at once


class FilePages:
    """The pages of the safetensors files in `folder` that this process has mapped.

    What nobody needs is given back some at a time: finding out where files are mapped takes a millisecond.
    """

    def __init__(self, folder: Path) -> None:
        files = {os.path.realpath(path) for path in folder.glob("*.safetensors")}
        self._spans = sorted(span for file in files for span in _spans(file))
        self._names = [name for name, *_ in self._spans]
        self._whole: set[str] = set()
        self._unneeded: dict[str, list[tuple[int, int]]] = {}
        self._bytes = 0

    def loaded(self, name: str) -> None:
        """The parameter `name` is made. If of other tensors than the one of that name, their pages are given
        back; they stay in the system's cache, so that reading them again would be right, only slower.
        """
        place = bisect_left(self._names, name)
        if self._names[place : place + 1] == [name]:
            self._whole.add(name)  # it may well lie in the file itself
            return
        below = name.rpartition(".")[0] + "."
        for tensor, file, begin, end in self._spans[bisect_left(self._names, below) :]:
            if not tensor.startswith(below):
                break
            if tensor not in self._whole:
                self._drop(file, begin, end)

    def copied(self, name: str) -> None:
        """The parameter `name`, which lay in a file, lies elsewhere now."""
        if name in self._whole:
            _, file, begin, end = self._spans[bisect_left(self._names, name)]
            self._drop(file, begin, end)

    def settle(self) -> None:
        """All that is not needed is given back."""
        if self._unneeded:
            _give_back({file: _joined(parts) for file, parts in self._unneeded.items()})
        self._unneeded, self._bytes = {}, 0

    def _drop(self, file: str, begin: int, end: int) -> None:
        self._unneeded.setdefault(file, []).append((begin, end))
        self._bytes += end - begin
        if self._bytes >= _MUCH:
            self.settle()


def _spans(file: str) -> Iterator[tuple[str, str, int, int]]:
    """Each tensor of a safetensors file: its name, the file, and the bytes where it begins and ends.

    None of a file that cannot be read: those that matter have been checked.
    """
    with (
        contextlib.suppress(OSError, ValueError, AttributeError, KeyError, TypeError),
        open(file, "rb") as opened,
    ):
        length = int.from_bytes(opened.read(8), "little")
        if length > os.path.getsize(file):
            return
        header = json.loads(opened.read(length))
        for name, about in header.items():
            if name != "__metadata__":
                begin, end = about["data_offsets"]
                yield name, file, 8 + length + begin, 8 + length + end


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same bytes in as few ranges as possible."""
    out: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if out and out[-1][1] == begin:
            begin, _ = out.pop()
        out.append((begin, end))
    return out


def _give_back(ranges: dict[str, list[tuple[int, int]]]) -> None:
    """Take whole pages of these bytes of these files out of the resident set."""
    libc = _libc()
    if libc is None:
        return
    # Read anew each time: where a file was unmapped, something else may be by now.
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        ours = [line for line in maps if any(path in line for path in ranges)]  # of some thousand lines
        lines = [line.rstrip("\n").split(maxsplit=5) for line in ours]
    for addresses, access, offset, *_, path in (line for line in lines if len(line) == 6):
        if path not in ranges or not access.endswith("p"):
            continue
        low, high = (int(part, 16) for part in addresses.split("-"))
        shift = low - int(offset, 16)
        for begin, end in ranges[path]:
            first = max(low, -(-(begin + shift) // mmap.PAGESIZE) * mmap.PAGESIZE)
            last = min(high, (end + shift) // mmap.PAGESIZE * mmap.PAGESIZE)
            if first < last:
                libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _DONTNEED)


@contextlib.contextmanager
def tight_heap() -> Iterator[None]:
    """Within it blocks of a megabyte are given back as soon as they are freed.

    Afterwards those above 32 MiB are, which is where glibc by itself would have come to.
    """
    libc = _libc()
    mallopt = getattr(libc, "mallopt", None)  # musl has none
    if mallopt is None:
        yield
        return
    mallopt(_MMAP_THRESHOLD, _SMALL)
    try:
        yield
    finally:
        mallopt(_MMAP_THRESHOLD, _USUAL)
        mallopt(_TRIM_THRESHOLD, 2 * _USUAL)


def onto_huge_pages(addresses: Sequence[int]) -> Iterator[None]:
    """Move the memory in which these addresses lie onto pages of 2 MiB, 16 MiB a step, where it is no file's.

    So a processor has fewer pages to find: weights are read by a tenth to a third faster on virtual machines.
    Linux can since 6.1; before, or where there is no room for such a page, memory stays as it is.
    """
    libc = _libc()
    if libc is None:
        return
    for low, high in _anonymous(sorted(addresses)):
        first, last = -(-low // _HUGE_PAGE) * _HUGE_PAGE, high // _HUGE_PAGE * _HUGE_PAGE
        for at in range(first, last, _STEP):
            libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(min(_STEP, last - at)), _COLLAPSE)
            yield


def _anonymous(addresses: Sequence[int]) -> list[tuple[int, int]]:
    """The mappings that hold any of the sorted addresses, and are no file's."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            lines = [line.split(maxsplit=5) for line in maps]
    except OSError:
        return []
    ranges = (map(functools.partial(int, base=16), line[0].split("-")) for line in lines if _is_memory(line))
    return [(low, high) for low, high in ranges if bisect_left(addresses, low) < bisect_left(addresses, high)]


def _is_memory(line: list[str]) -> bool:
    return line[1] == "rw-p" and (len(line) < 6 or line[5].strip() == "[heap]")


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
