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
import functools
import itertools
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
_ROWS, _TIMES = 16, 2
"""Of each expert, and how often, when it is measured what pays."""


def experts_of(model: Any) -> dict[str, Any]:
    """By name, the modules of routed experts that can be computed apart: plain weights, all of one type."""

    def fits(module: Any) -> bool:
        weights = [module._parameters.get(part) for part in PARTS]
        return is_usual(module) and all(t is not None and t.dtype == model.dtype for t in weights)

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


def pin(model: Any, on_close: Callable[[Callable[[], None]], object]) -> Iterator[None]:
    """Let a GPU read experts where they are, one a step. `on_close` is told how to undo it.

    They must not be moved any more: what is pinned stays on the pages where it is.
    """
    layers = [module.forward.__self__ for module in model.modules() if are_apart(module)]
    for sender in {layer.sender for layer in layers}:
        on_close(sender.unpin)
    for layer in layers:
        for expert in layer.experts:
            for matrix in expert:
                layer.sender.pin(matrix)
            yield


def _device_of(name: str, where: dict[str, Any]) -> str:
    """The device of a module, by the longest name in the map that it, or one above it, has."""
    parts = name.split(".")
    names = (".".join(parts[:n]) for n in range(len(parts), -1, -1))
    return next((str(where[above]) for above in names if above in where), "")


def _torch_device(device: Any) -> Any:
    import torch

    return torch.device(f"cuda:{device}" if isinstance(device, int) else device)


def are_apart(experts: Any) -> bool:
    """Whether they are in main memory, and all else of their layer on a GPU."""
    return isinstance(getattr(getattr(experts, "forward", None), "__self__", None), _Layer)


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
        self.experts = _sendable(module)
        self.sender = sender
        if self.experts and sender.least is None and sender.sends:
            sender.least = self._measured()

    def __deepcopy__(self, _: object) -> _Layer:
        """A copy of the model runs the same weights."""
        return self

    def forward(self, x: Any, numbers: Any, weights: Any) -> Any:
        """The sum, by `weights` [n, k], of what the experts of these `numbers` [n, k] make of x [n, hidden]:
        [n, hidden]. All are on the GPU."""
        import torch

        if len(x) > _FEW and self.experts:
            counts = torch.bincount(numbers.reshape(-1), minlength=len(self.experts)).tolist()
            if self.sender.pays(numbers.numel() / sum(map(bool, counts))):
                return self._there(x, numbers, weights, counts)
        return self._here(*_to_cpu(x, numbers, weights.float())).to(x.device)

    def _there(self, x: Any, numbers: Any, weights: Any, counts: list[int]) -> Any:
        """The same on the GPU, where each expert has so many rows."""
        import torch

        rows, each = numbers.shape
        order = numbers.reshape(-1).argsort()  # the rows of an expert stand together
        given = x[order // each]
        made, begin = torch.empty_like(given), 0
        for expert, count in zip(self.experts, counts, strict=True):
            if count:
                mine = slice(begin, begin + count)
                with self.sender.sent(expert) as (up, down):
                    inner = self._apply_gate(torch.nn.functional.linear(given[mine], up))
                    torch.mm(inner, down.T, out=made[mine])
                begin += count
        places = order.argsort().view(rows, each)
        out = torch.zeros_like(x, dtype=torch.float32)
        for nth in range(each):  # one after the other: all at once would take eight times the memory
            out.addcmul_(made[places[:, nth]].float(), weights[:, nth, None].float())
        return out.to(x.dtype)

    def _measured(self) -> float:
        """From how many rows of each expert on it pays to send all of them."""
        import torch

        def seconds(rows: int, compute: Callable[..., Any]) -> float:
            numbers = torch.arange(len(self.experts)).repeat(rows).view(-1, 1)
            x = torch.zeros(len(numbers), self.experts[0].up.shape[1], dtype=self.experts[0].up.held.dtype)
            given = [t.to(self.sender.device) for t in (x, numbers, torch.ones(len(numbers), 1))]
            times = []
            for _ in range(_TIMES):
                began = time.perf_counter()
                compute(*given).cpu()
                times.append(time.perf_counter() - began)
            return min(times)

        def there(x: Any, numbers: Any, weights: Any) -> Any:
            return self._there(x, numbers, weights, [_ROWS] * len(self.experts))

        with torch.inference_mode():
            one, many = (seconds(rows, lambda *given: self._here(*_to_cpu(*given))) for rows in (1, _ROWS))
            sent = seconds(_ROWS, there)
        each = max(many - one, 1e-9) / (_ROWS - 1)  # the first row takes longer: it reads the weights
        return 1 + (sent - one) / each


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
    block: int | None
    """Of a packed one; see native.Matrix."""

    @classmethod
    def of(cls, weight: Any) -> _Matrix:
        shape = (weight.shape[0], weight.shape[1])
        if getattr(weight, "held", None) is None:
            return cls(weight.detach().reshape(-1), shape, None)
        return cls(weight.held, shape, weight.native[0].block)

    def plain(self, held: Any) -> Any:
        """The matrix [outs, ins] of its numbers, wherever those are."""
        return held.view(self.shape) if self.block is None else native.plain(held, *self.shape, self.block)


class _Expert(NamedTuple):
    up: _Matrix
    down: _Matrix


def _sendable(module: Any) -> list[_Expert]:
    """Its experts; none where oneDNN has packed any in a way of its own."""
    pairs = list(zip(*(getattr(module, part) for part in PARTS), strict=True))
    if any(t.is_mkldnn for pair in pairs for t in pair):
        return []
    return [_Expert(_Matrix.of(up), _Matrix.of(down)) for up, down in pairs]


class _Sender:
    """Sends experts to a GPU, through pinned memory, beside what is computed there."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.sends = device.type in ("cuda", "cpu")
        """Only to those; a CPU is sent nothing, as it has them."""
        self.least: float | None = None
        """Rows of an expert from which on it pays to send it."""
        self._slots: Iterator[_Slot] | None = None
        self._pinned: set[int] = set()
        """Where memory begins that the GPU reads itself."""
        self._may_pin = True

    def pays(self, rows: float) -> bool:
        """Whether to send experts of which each has so many rows."""
        return self.least is not None and rows >= self.least

    @contextlib.contextmanager
    def sent(self, expert: _Expert) -> Iterator[tuple[Any, Any]]:
        """Its matrices on the GPU, [2 * inner, hidden] and [hidden, inner], for what is computed within."""
        import torch

        if self.device.type != "cuda":
            yield expert.up.plain(expert.up.held), expert.down.plain(expert.down.held)
            return
        if self._slots is None:
            self._stream: Any = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            self._slots = itertools.cycle([_Slot.like(expert, self.device) for _ in range(_SLOTS)])
        slot, now = next(self._slots), torch.cuda.current_stream(self.device)
        held: Sequence[Any] = [matrix.held for matrix in expert]
        if any(t.untyped_storage().data_ptr() not in self._pinned for t in held):
            slot.arrived.synchronize()  # what was in it before
            for pinned, matrix in zip(slot.pinned, held, strict=True):
                pinned.copy_(matrix)
            held = slot.pinned
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(slot.done)
            for there, pinned in zip(slot.there, held, strict=True):
                there.copy_(pinned, non_blocking=True)
            slot.arrived.record(self._stream)
        now.wait_event(slot.arrived)
        up, down = (m.plain(there) for m, there in zip(expert, slot.there, strict=True))
        yield up, down
        slot.done.record(now)

    def pin(self, matrix: _Matrix) -> None:
        """Let the GPU read it, and what lies with it, where it is, which takes no time of the CPU's.

        Where the system does not let it be, nothing more is tried.
        """
        import torch

        memory = matrix.held.untyped_storage()
        address = memory.data_ptr()
        if self.device.type != "cuda" or address in self._pinned or not self._may_pin:
            return
        cuda: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        self._may_pin = not int(cuda.cudaHostRegister(address, memory.nbytes(), 0))
        if self._may_pin:
            self._pinned.add(address)
        else:
            with contextlib.suppress(RuntimeError):  # the next kernel is told of it, so that is this one
                torch.zeros(1, device=self.device)

    def unpin(self) -> None:
        """Before the memory is given back."""
        import torch

        cuda: Any = torch.cuda.cudart() if self._pinned else None  # type: ignore[no-untyped-call]
        while self._pinned:
            cuda.cudaHostUnregister(self._pinned.pop())


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
