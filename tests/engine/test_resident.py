"""What a load leaves of the checkpoint's files in memory, and what turns leave behind."""

from __future__ import annotations

import ctypes
import gc
import inspect
import json
import mmap
import os
import re
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.checkpoint import SHAPE, write_random_checkpoint
from benchmarks.memory import load_peak, sizes_over_turns
from glmchat.engine import local
from glmchat.engine.local import open_local
from glmchat.engine.memory import LoadOptions
from glmchat.engine.resident import FilePages, _joined, onto_huge_pages, tight_heap

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MB = 1 << 20


def in_memory(file: Path) -> int:
    """Bytes of the file that this process has in memory."""
    smaps = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")
    found = re.findall(rf" {re.escape(str(file))}\n(?:.*\n)*?Rss: +(\d+) kB", smaps)
    return sum(int(size) * 1024 for size in found)


@linux
def test_pages_of_what_was_copied_are_given_back_and_others_are_not(tmp_path: Path) -> None:
    rows = MB // 4  # of floats in a MB
    tensors = {f"m.experts.{n}.up.weight": torch.full((2 * rows,), float(n)) for n in range(4)}
    tensors |= {"m.experts.bias": torch.ones(2 * rows), "m.gate.weight": torch.ones(2 * rows)}
    file = tmp_path / "model.safetensors"
    save_file(tensors, file)
    (tmp_path / "other.safetensors").write_bytes(b"no weights at all")
    pages = FilePages(tmp_path)
    with safe_open(file, "pt") as opened:
        mapped = {name: opened.get_tensor(name) for name in tensors}
    mapped["m.experts.bias"] += 1  # as if a load had changed what lies in the file's own pages
    assert all(tensor.sum() >= 0 for tensor in mapped.values())
    before = in_memory(file)
    assert before >= 12 * MB
    for name in ("m.gate.weight", "m.experts.bias"):
        pages.loaded(name)
    pages.settle()
    assert in_memory(file) == before
    pages.loaded("m.experts.up")
    pages.settle()
    assert in_memory(file) <= 5 * MB
    assert all(torch.equal(mapped[name], tensors[name]) for name in tensors if name != "m.experts.bias")
    assert torch.equal(mapped["m.experts.bias"], tensors["m.experts.bias"] + 1)


def test_neighbours_are_one_range() -> None:
    assert _joined([(8, 12), (0, 4), (4, 8), (20, 24)]) == [(0, 12), (20, 24)]


@linux
def test_freed_blocks_do_not_stay() -> None:
    def held() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    with tight_heap():
        before = held()
        kept = []
        for _ in range(20):
            block, between = torch.ones(2 * MB), torch.ones(64)
            kept.append(between)
            del block
        assert held() - before < 8 * MB


@linux
def test_a_load_takes_little_more_than_the_weights(tmp_path: Path) -> None:
    """Of so few weights the libraries' own memory is a tenth; twice as much as all is what it was."""
    shape = SHAPE | {"moe_intermediate_size": 224}
    told = load_peak(str(write_random_checkpoint(tmp_path / "random-160M", shape)))
    assert told["weights"] > 250e6
    assert told["peak"] / told["weights"] < 1.4, json.dumps(told)


@linux
def test_many_turns_leave_nothing_behind() -> None:
    """Neither in memory, where a KV cache a turn would be 25 MB in all, nor in Python's objects."""
    objects: list[int] = []
    warm, end = sizes_over_turns("demo", [30, 60], lambda: objects.append(len(gc.get_objects())))
    assert end - warm < 40e6
    assert objects[1] - objects[0] < 500


def on_huge_pages() -> int:
    """Bytes of this process."""
    text = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8")
    (size,) = re.findall(r"^AnonHugePages: +(\d+) kB", text, re.MULTILINE)
    return int(size) * 1024


def why_no_huge_pages() -> str:
    """Why the system gives none to memory of our own; '' if it does."""
    libc, size, collapse = ctypes.CDLL(None, use_errno=True), 4 * MB, 25
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.write(b"x" * size)
        start = ctypes.addressof(view := ctypes.c_char.from_buffer(memory))
        aligned = -(-start // (2 * MB)) * 2 * MB
        failed = libc.madvise(ctypes.c_void_p(aligned), ctypes.c_size_t(2 * MB), collapse)
        del view
        return os.strerror(ctypes.get_errno()) if failed else ""


@linux
def test_memory_gets_onto_huge_pages_and_stays_as_it_was() -> None:
    numbers = torch.arange(16 * MB, dtype=torch.int32)
    before = on_huge_pages()
    steps = sum(1 for _ in onto_huge_pages([numbers.data_ptr()]))
    assert steps >= 4  # of 16 MiB
    assert torch.equal(numbers, torch.arange(16 * MB, dtype=torch.int32))
    if why := why_no_huge_pages():
        pytest.skip(f"Linux puts no memory onto huge pages when it is asked to (MADV_COLLAPSE): {why}")
    assert on_huge_pages() >= before + 48 * MB


@linux
def test_what_lies_in_a_file_or_nowhere_is_left(tmp_path: Path) -> None:
    save_file({"a": torch.ones(8 * MB)}, tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as opened:
        mapped = opened.get_tensor("a")
        assert list(onto_huge_pages([mapped.data_ptr(), 0, 1 << 60])) == []
    assert list(onto_huge_pages([])) == []


@linux
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_weights_get_onto_huge_pages_while_nobody_asks(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """Of both kinds: packed, and plain."""
    monkeypatch.setattr(local, "IDLE_S", 0.05)
    with open_local("demo", LoadOptions(device_map="cpu", dtype=dtype)) as engine:
        for _ in range(100):
            time.sleep(0.1)
            paging = engine.lend(lambda decoder, *_: decoder.loaded._paging)
            if paging is not None and inspect.getgeneratorstate(paging) == inspect.GEN_CLOSED:
                break
        else:
            pytest.fail("an idle engine did not get through its weights")
