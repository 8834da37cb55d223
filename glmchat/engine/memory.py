"""Where weights may go, and how wide they are there: `--max-memory` and `--device-map` as text, checked
before anything is loaded, and the dtype that `--dtype auto` stands for."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import UsageError

DeviceMap: TypeAlias = str | dict[str, int | str]
"""A strategy of accelerate (`auto`, `balanced`, `sequential`), or the device of each module; "" is all."""

STRATEGIES = ("auto", "balanced", "sequential")
_DEVICE = re.compile(r"cpu|disk|mps|(cuda|xpu)(:\d+)?")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt])(i?)b?", re.IGNORECASE)


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
    path = Path(text).expanduser()
    if path.suffix != ".json":
        raise UsageError(
            f"--device-map {text} is not known; use {', '.join(STRATEGIES)}, cpu, cuda:N, "
            "or a file that ends in .json."
        )
    try:
        placement = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UsageError(f"--device-map: {path} cannot be read: {e.strerror or e}.") from None
    except ValueError as e:
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


SLOW = 4.0
"""A dtype is slow whose matrix product takes this many times as long as FP32's; emulated, it is 50 to 100."""


def is_slow_on_cpu(dtype: Any) -> bool:
    """Whether this CPU multiplies matrices of the torch dtype `dtype` far slower than FP32 ones.

    torch has fast kernels for BF16 and FP16 only where the CPU has instructions for them. No public call
    tells, so it is measured, in some 20 ms at the worst.
    """
    import torch

    def seconds(dtype: Any) -> float:
        a, b = torch.ones(64, 256, dtype=dtype), torch.ones(256, 256, dtype=dtype)
        times = []
        for _ in range(3):
            started = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - started)
        return min(times)

    return seconds(dtype) > SLOW * seconds(torch.float32)


def wider_on_cpu(stored: Any, weight_bytes: int) -> bool:
    """Whether weights of the torch dtype `stored` should be FP32 on the CPU: where they are of 16 bits, slow
    there, and twice their bytes take no more than three quarters of the memory that is free."""
    import psutil
    import torch

    if stored not in (torch.bfloat16, torch.float16):
        return False
    return 2 * weight_bytes <= 0.75 * psutil.virtual_memory().available and is_slow_on_cpu(stored)
