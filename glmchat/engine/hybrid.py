"""Experts that lie in main memory beside a GPU: hybrid inference.

accelerate moves all experts of a layer to the GPU for each forward. Of them a token is sent to a few, which a
CPU reads where they are in a hundredth of that time; so the CPU computes them for few tokens, and all else
stays on the GPU. For the many tokens of a prompt they are sent to the GPU after all, one by one, while it
computes with those before; from how many tokens on is measured.

A layer's experts of GLM-4.5-Air, on an H100 with 16 cores of a Xeon: accelerate takes 500 ms to move them,
the CPU 4 ms for a token, and from pinned memory they are sent in 100 ms.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from . import native
from .fused import use_fused
from .packing import PARTS, is_usual, pack, run_experts

_SLOTS = 4
"""Experts that are on their way to the GPU, or computed with there, at once."""
_FEW = 16
"""Rows that are always computed where the experts are, without asking how many an expert has."""
_MEASURED, _ROWS, _TIMES = 8, 64, 3
"""Experts, the rows of each, and how often, when speeds are measured."""


def experts_of(model: Any) -> dict[str, Any]:
    """By name, the modules of routed experts that can be computed apart: plain weights, all of one type."""

    def fits(module: Any) -> bool:
        weights = [module._parameters.get(part) for part in PARTS]
        return is_usual(module) and all(t is not None and t.dtype == model.dtype for t in weights)

    if getattr(model.config, "quantization_config", None) is not None:
        return {}
    return {name: module for name, module in model.named_modules() if fits(module)}


def compute_where_they_are(model: Any) -> Iterator[None]:
    """Take the experts that accelerate is to move from main memory to a GPU out of its hands, a layer a step.

    If nothing else is to be moved, and there is one GPU, nothing is left in its hands.
    """
    from accelerate.hooks import remove_hook_from_module

    where = getattr(model, "hf_device_map", None) or {}
    gpus = {str(device) for device in where.values()} - {"cpu", "disk"}
    if not gpus:
        return
    found = {n: m for n, m in experts_of(model).items() if _device_of(n, where) == "cpu"}
    senders: dict[Any, _Sender] = {}
    for module in found.values():
        device = _torch_device(module._hf_hook.execution_device)
        remove_hook_from_module(module, recurse=True)  # which puts the weights back
        layer = _Layer(module, senders.setdefault(device, _Sender(device)))
        module.forward = layer.forward
        yield
    if found and len(gpus) == 1 and not any(t.is_meta for t in model.parameters()):
        remove_hook_from_module(model, recurse=True)


def _device_of(name: str, where: dict[str, Any]) -> str:
    """The device of a module, by the longest name in the map that it, or one above it, has."""
    parts = name.split(".")
    names = (".".join(parts[:n]) for n in range(len(parts), -1, -1))
    return next((str(where[above]) for above in names if above in where), "")


def _torch_device(device: Any) -> Any:
    import torch

    return torch.device(f"cuda:{device}" if isinstance(device, int) else device)


class _Layer:
    """The experts of one layer, in main memory."""

    def __init__(self, module: Any, sender: _Sender) -> None:
        self._apply_gate = module._apply_gate
        if native.usable():
            for _ in pack(module):
                pass
        module.forward = functools.partial(run_experts, module)
        use_fused(module)
        self._here: Callable[[Any, Any, Any], Any] = module.forward
        self._experts = _sendable(module)
        self._sender = sender
        if self._experts:
            sender.learn(self._here, self._experts)

    def forward(self, x: Any, numbers: Any, weights: Any) -> Any:
        """The sum, by `weights` [n, k], of what the experts of these `numbers` [n, k] make of x [n, hidden]:
        [n, hidden]. All are on the GPU."""
        import torch

        if len(x) > _FEW and self._experts:
            counts = torch.bincount(numbers.reshape(-1), minlength=len(self._experts)).tolist()
            if self._sender.pays(numbers.numel() / sum(map(bool, counts))):
                return self._there(self._experts, counts, x, numbers, weights)
        return self._here(*_to_cpu(x, numbers, weights.float())).to(x.device)

    def _there(self, experts: list[_Expert], counts: list[int], x: Any, numbers: Any, weights: Any) -> Any:
        """The same on the GPU, by these experts of so many rows each."""
        import torch

        order = numbers.reshape(-1).argsort()  # the rows of an expert stand together
        rows = (order // numbers.shape[1]).split(counts)
        scales = weights.reshape(-1, 1)[order].float().split(counts)
        out = torch.zeros_like(x, dtype=torch.float32)
        for expert, mine, scale in zip(experts, rows, scales, strict=True):
            if len(mine):
                with self._sender.sent(expert) as (up, down):
                    inner = self._apply_gate(torch.nn.functional.linear(x[mine], up))
                    made = torch.nn.functional.linear(inner, down)
                out.index_add_(0, mine, made.float() * scale)
        return out.to(x.dtype)


def _to_cpu(x: Any, numbers: Any, weights: Any) -> tuple[Any, Any, Any]:
    """All three in main memory, by one copy: each waits for the GPU."""
    import torch

    tensors = numbers, weights, x  # those of the widest type first, as they have to lie
    if x.device.type == "cpu":
        return x, numbers, weights
    joined = torch.cat([t.reshape(-1).view(torch.uint8) for t in tensors]).cpu()
    parts = torch.split(joined, [t.nbytes for t in tensors])
    numbers, weights, x = (p.view(t.dtype).view(t.shape) for p, t in zip(parts, tensors, strict=True))
    return x, numbers, weights


class _Matrix(NamedTuple):
    """One in main memory, and how it lies there."""

    held: Any
    """Its numbers, [n]."""
    shape: tuple[int, int]
    packed: tuple[int, int] | None
    """Room and block; see native.Matrix."""

    @classmethod
    def of(cls, weight: Any) -> _Matrix:
        import torch

        shape = (weight.shape[0], weight.shape[1])
        if not weight.is_mkldnn:
            return cls(weight.detach().reshape(-1), shape, None)
        (matrix,) = weight.native
        blocks = -(-matrix.outs // matrix.block)
        bytes_ = (ctypes.c_char * (2 * blocks * matrix.block * matrix.room)).from_address(matrix.packed)
        return cls(torch.frombuffer(bytes_, dtype=weight.dtype), shape, (matrix.room, matrix.block))

    def plain(self, held: Any) -> Any:
        """The matrix [outs, ins] of its numbers, wherever those are."""
        if self.packed is None:
            return held.view(self.shape)
        (outs, ins), (room, block) = self.shape, self.packed
        return held.view(-1, room // 2, block, 2).transpose(1, 2).reshape(-1, room)[:outs, :ins]


class _Expert(NamedTuple):
    up: _Matrix
    down: _Matrix


def _sendable(module: Any) -> list[_Expert]:
    """Its experts; none where oneDNN has packed any in a way of its own."""
    pairs = list(zip(*(getattr(module, part) for part in PARTS), strict=True))
    if any(t.is_mkldnn and getattr(t, "native", None) is None for pair in pairs for t in pair):
        return []
    return [_Expert(_Matrix.of(up), _Matrix.of(down)) for up, down in pairs]


class _Sender:
    """Sends experts to a GPU, through pinned memory, beside what is computed there."""

    def __init__(self, device: Any) -> None:
        self._device = device
        self._slots: Iterator[_Slot] | None = None
        self._least: float | None = None
        """Rows of an expert from which on it pays."""

    def pays(self, rows: float) -> bool:
        """Whether to send experts of which each has so many rows."""
        return self._least is not None and rows >= self._least

    @contextlib.contextmanager
    def sent(self, expert: _Expert) -> Iterator[tuple[Any, Any]]:
        """Its matrices on the GPU, [2 * inner, hidden] and [hidden, inner], for what is computed within."""
        import torch

        if self._device.type != "cuda":
            yield expert.up.plain(expert.up.held), expert.down.plain(expert.down.held)
            return
        if self._slots is None:
            self._stream: Any = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            self._slots = itertools.cycle([_Slot.like(expert, self._device) for _ in range(_SLOTS)])
        slot, now = next(self._slots), torch.cuda.current_stream(self._device)
        slot.arrived.synchronize()  # what was in it before
        for pinned, matrix in zip(slot.pinned, expert, strict=True):
            pinned.copy_(matrix.held)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(slot.done)
            for there, pinned in zip(slot.there, slot.pinned, strict=True):
                there.copy_(pinned, non_blocking=True)
            slot.arrived.record(self._stream)
        now.wait_event(slot.arrived)
        up, down = (m.plain(there) for m, there in zip(expert, slot.there, strict=True))
        yield up, down
        slot.done.record(now)

    def learn(self, here: Callable[[Any, Any, Any], Any], experts: Sequence[_Expert]) -> None:
        """Measure, if that was not done, from how many rows on it pays to send an expert."""
        import torch

        if self._least is not None:
            return
        some = experts[:_MEASURED]

        def compute(rows: int) -> None:
            numbers = torch.arange(len(some)).expand(rows, -1).contiguous()
            x = some[0].up.held.new_zeros(rows, some[0].up.shape[1])
            here(x, numbers, torch.ones(rows, len(some)))

        def send() -> None:
            for expert in some:
                with self.sent(expert):
                    pass
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)

        with torch.inference_mode():
            one, many, sent = (_seconds(do) for do in (lambda: compute(1), lambda: compute(_ROWS), send))
        row = max(many - one, 1e-9) / (_ROWS - 1)
        self._least = (sent - one) / row  # the first row of an expert reads it, each takes its time


def _seconds(do: Callable[[], None]) -> float:
    """How long it takes, at best."""
    times = [math.inf]
    for _ in range(_TIMES):
        began = time.perf_counter()
        do()
        times.append(time.perf_counter() - began)
    return min(times)


class _Slot(NamedTuple):
    """Room for an expert."""

    pinned: Sequence[Any]
    there: Sequence[Any]
    arrived: Any
    """Event: what is pinned has been copied."""
    done: Any
    """Event: what was there has been computed with."""

    @classmethod
    def like(cls, expert: _Expert, device: Any) -> _Slot:
        import torch

        held = [matrix.held for matrix in expert]
        return cls(
            [torch.empty_like(t, pin_memory=True) for t in held],
            [torch.empty_like(t, device=device) for t in held],
            torch.cuda.Event(),  # type: ignore[no-untyped-call]
            torch.cuda.Event(),  # type: ignore[no-untyped-call]
        )
