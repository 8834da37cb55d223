"""How weights are found and where they may go: options as text, checked before anything is loaded.

And how much memory there is, and was used.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ..errors import UsageError
from ..kinds import LOADING

DeviceMap: TypeAlias = str | dict[str, int | str]
"""A strategy of accelerate (`auto`, `balanced`, `sequential`), or the device of each module; "" is all."""

STRATEGIES = ("auto", "balanced", "sequential")
_DEVICE = re.compile(r"cpu|disk|mps|(cuda|xpu)(:\d+)?")
_PARALLEL = re.compile(r"tensor(?::([2-9]|[1-9]\d+))?")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt])(i?)b?", re.IGNORECASE)


_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
_CGROUPS = (
    (_CGROUP, "memory.max", "memory.current", "inactive_file"),
    (_CGROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Where Linux tells what a container may use and does, and what of that it would give up; by version."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How weights are found and placed; the fields are the command line's options of the same name.

    `dtype` auto keeps the checkpoint's own type. `offload_dir` is needed only when weights go to disk.
    `speculate` is auto, mtp, lookup or off; `parallel` off, tensor or tensor:N; `compile` auto, on or off.
    """

    device_map: str = "auto"
    max_memory: str | None = None
    offload_dir: str | None = None
    dtype: str = "auto"
    attn: str | None = None
    revision: str | None = None
    token: str | None = None
    offline: bool = False
    trust_remote_code: bool = False
    speculate: str = "auto"
    compile: str = "auto"
    parallel: str = "off"

    def check(self) -> None:
        """Raises: UsageError for an option that cannot be read, or does not go with another."""
        self.placement()
        for name, kind in LOADING.items():
            try:
                kind.read_value(getattr(self, name))
            except ValueError as e:
                raise UsageError(f"--{name} {e}.") from None
        if self.ranks == 1:
            return
        for option, given, why in (
            ("--device-map", self.device_map not in ("auto", "cpu"), "each rank has a device of its own"),
            ("--max-memory", self.max_memory is not None, "each rank takes an equal share"),
            ("--offload-dir", self.offload_dir is not None, "each rank keeps its share on its device"),
            ("--speculate mtp", self.speculate == "mtp", "the MTP layer needs all of lm_head on one device"),
            ("--compile on", self.compile == "on", "the step is compiled for one device"),
        ):
            if given:
                raise UsageError(
                    f"{option} does not go with --parallel {self.parallel}: {why}; leave out one of them."
                )

    @property
    def ranks(self) -> int | None:
        """How many share the model: 1 without `parallel`, None for all GPUs. Raises: UsageError."""
        if self.parallel == "off":
            return 1
        match = _PARALLEL.fullmatch(self.parallel)
        if match is None:
            raise UsageError(f"--parallel {self.parallel} is not known; use off, tensor or tensor:N.")
        return int(match[1]) if match[1] else None

    def placement(self) -> tuple[DeviceMap, dict[int | str, int] | None]:
        """The device map and the memory limits. Raises: UsageError when they cannot be read."""
        limits = parse_max_memory(self.max_memory) if self.max_memory else None
        return parse_device_map(self.device_map), limits


def parse_max_memory(text: str) -> dict[int | str, int]:
    """`0=70GiB,cpu=100GiB` → bytes for each GPU number, `cpu` or `mps`. KB … TB and KiB … TiB are known.

    Raises: UsageError that names the part that is wrong.
    """
    limits: dict[int | str, int] = {}
    for part in text.split(","):
        device, equals, size = (piece.strip() for piece in part.partition("="))
        number = _SIZE.fullmatch(size)
        if not equals or not number or not (device.isdecimal() or device in {"cpu", "mps"}):
            raise UsageError(
                f"--max-memory: {part.strip()!r} is not DEVICE=SIZE with a GPU number or cpu; "
                "it looks like 0=70GiB,cpu=100GiB."
            )
        base = 1024 if number[3] else 1000
        amount = float(number[1]) * base ** " kmgt".index(number[2].lower())
        limits[int(device) if device.isdecimal() else device] = int(amount)
    return limits


def parse_device_map(text: str) -> DeviceMap:
    """A strategy, one device for all, or the map in a JSON file `{"model.layers.0": 0, "lm_head": "cpu"}`.

    Raises: UsageError when it is none of these.
    """
    if text in STRATEGIES:
        return text
    if text != "disk" and _DEVICE.fullmatch(text):
        return {"": text}
    path = Path(os.path.expanduser(text))
    if path.suffix != ".json":
        raise UsageError(
            f"--device-map {text} is not known; use {', '.join(STRATEGIES)}, cpu, cuda:N, "
            "or a file that ends in .json."
        )
    try:
        placement = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UsageError(f"--device-map: {path} cannot be read: {e.strerror or e}.") from None
    except (ValueError, RecursionError) as e:
        raise UsageError(f"--device-map: {path} is not JSON: {e}.") from None
    if not isinstance(placement, dict) or not placement:
        raise UsageError(f"--device-map: {path} must hold an object of module names and devices.")
    for module, device in placement.items():
        number = isinstance(device, int) and not isinstance(device, bool) and device >= 0
        if not number and not (isinstance(device, str) and _DEVICE.fullmatch(device)):
            raise UsageError(
                f"--device-map: {path} places {module!r} on {device!r}; a device is a GPU number, "
                "cuda:N, cpu or disk."
            )
    return placement


def free_memory() -> int:
    """Bytes of memory that can be had; no more, on Linux, than a container has left.

    What nobody uses, and there also what files are kept in that may be read again, but for those that this
    process has mapped, as weights.
    """
    available = _numbers(_PROC / "meminfo").get("MemAvailable")
    if available is None:
        import psutil

        return int(psutil.virtual_memory().available)
    free = 1024 * (available - _numbers(_PROC / "self" / "status").get("RssFile", 0))
    return max(0, min([free, *(limit - used for limit, used in _containers())]))


def total_memory() -> int:
    """Bytes of memory that this machine has, or this container may use, and of the disk to swap to."""
    import psutil

    total = min([psutil.virtual_memory().total, *(limit for limit, _ in _containers())])
    return int(total + psutil.swap_memory().total)


def processor_limit() -> int | None:
    """How many processors' time a container gives at least, on Linux; None: that of all there are."""
    quota = period = 0
    with contextlib.suppress(OSError, ValueError):  # of the other kind, or without a limit: "max", or -1
        quota, period = map(int, (_CGROUP / "cpu.max").read_text(encoding="ascii").split())
    with contextlib.suppress(OSError, ValueError):
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        quota, period = (int((_CGROUP / "cpu" / name).read_text(encoding="ascii")) for name in names)
    return max(1, quota // period) if quota > 0 and period > 0 else None


def _containers() -> Iterator[tuple[int, int]]:
    """The limit of each that this process is in, and the bytes in use there, less what it would give up."""
    for folder, most, used, files in _CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # not of this kind, or without a limit: "max"
            limit, now = (int((folder / name).read_text(encoding="ascii")) for name in (most, used))
            yield limit, now - _numbers(folder / "memory.stat").get(files, 0)


def _numbers(file: Path) -> dict[str, int]:
    """Those in a file of Linux's with a name and a number in each line; in kB where a unit stands there."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    return {name: int(number) for name, number in re.findall(r"^(\w+):?\s+(\d+)", text, re.MULTILINE)}


def peak_resident() -> int:
    """Bytes of this process that were in memory at most, pages of mapped files among them."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(re.findall(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)[0]) * 1024
    except (OSError, IndexError):  # not Linux; there `resource` would tell of the program before exec as well
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
