"""How much memory there is, as Linux tells it."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
import torch

from glmchat.engine import environ, memory
from glmchat.engine.memory import free_memory, processor_limit, total_memory

KB, GB = 1 << 10, 1 << 30


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text)


@pytest.fixture
def linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 20 GB of files in memory, 5 of which are mapped by us."""
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    groups = [(tmp_path / folder.relative_to("/"), *names) for folder, *names in memory._CGROUPS]
    monkeypatch.setattr(memory, "_CGROUPS", groups)
    available = f"MemTotal: {32 * GB // KB} kB\nMemFree: {GB // KB} kB\nMemAvailable: {21 * GB // KB} kB\n"
    write(tmp_path / "proc", meminfo=available)
    write(tmp_path / "proc" / "self", status=f"Name:\tglmchat\nRssFile:\t {5 * GB // KB} kB\n")
    return tmp_path / "sys" / "fs" / "cgroup"


def test_files_give_way_but_for_weights(linux: Path) -> None:
    assert free_memory() == 16 * GB


def test_a_container_has_less(linux: Path) -> None:
    stat = f"anon 7\ninactive_file {2 * GB}\n"
    write(linux, memory_max="max\n", memory_current=f"{9 * GB}\n", memory_stat=stat)
    assert free_memory() == 16 * GB, "without a limit"
    write(linux, memory_max=f"{10 * GB}\n")
    assert free_memory() == 3 * GB


def test_a_container_of_the_first_version(linux: Path) -> None:
    folder = linux / "memory"
    write(folder, memory_stat=f"inactive_file 1\ntotal_inactive_file {GB}\n")
    write(folder, memory_limit_in_bytes=f"{1 << 62}\n", memory_usage_in_bytes="1\n")
    assert free_memory() == 16 * GB
    write(folder, memory_limit_in_bytes=f"{8 * GB}\n", memory_usage_in_bytes=f"{6 * GB}\n")
    assert free_memory() == 3 * GB
    write(folder, memory_usage_in_bytes=f"{10 * GB}\n")
    assert free_memory() == 0, "never less than nothing"


def test_a_container_gives_so_many_processors(
    linux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_CGROUP", linux)
    assert processor_limit() is None
    write(linux, cpu_max="max 100000\n")
    assert processor_limit() is None
    write(linux, cpu_max="250000 100000\n")
    assert processor_limit() == 2
    write(linux, cpu_max="50000 100000\n")
    assert processor_limit() == 1
    (linux / "cpu.max").unlink()
    write(linux / "cpu", cpu_cfs_quota_us="-1\n", cpu_cfs_period_us="100000\n")
    assert processor_limit() is None
    write(linux / "cpu", cpu_cfs_quota_us="400000\n")
    assert processor_limit() == 4


@pytest.mark.parametrize(
    ("limit", "said", "expected"), [(1, None, 1), (8, None, 2), (None, None, 2), (1, "2", 2)]
)
def test_no_more_threads_than_a_container_has_time_for(
    limit: int | None, said: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    monkeypatch.setattr(environ, "processor_limit", lambda: limit)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        environ.bring_torch()
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def test_elsewhere_the_system_is_asked(linux: Path, tmp_path: Path) -> None:
    (tmp_path / "proc" / "meminfo").unlink()
    assert 0 < free_memory() < total_memory()


def test_here_it_is_no_more_than_there_is() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < free_memory() < total


def test_all_that_a_container_may_use(linux: Path) -> None:
    everything = total_memory()
    assert everything >= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    write(linux, memory_max=f"{GB}\n", memory_current=f"{GB // 2}\n", memory_stat="anon 7\n")
    assert total_memory() == GB + psutil.swap_memory().total < everything
