"""Weights in the order in which they are multiplied with, on a CPU.

torch hands oneDNN its weights row by row, to be sorted anew for each matrix product, and transformers goes
through all experts of a layer where a token needs a few. Sorted once, and with its own experts only, a token
takes a fifth to a third less time, and the numbers are the same.

Where there are kernels of our own they do the products, and the sorting: they take as long as memory takes to
read the weights, or, for many rows, as long as oneDNN. On a CPU that has no products in BF16, or slow ones,
ours read weights row by row, as they are: nothing is packed, and each is only told how to be multiplied with.

Else oneDNN packs them. It makes a kernel for each number of rows, which takes half a millisecond, and has a
slow one for a single row. So its products have a few numbers of rows only: some rows are computed in vain.
What that changes is at most the last bit of a single row of a large matrix, which comes out as beside others.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from . import native
from .source import source_of

_EXPERTS, _USUAL_EXPERTS = "glmchat_packed", "grouped_mm"
PARTS = ("gate_up_proj", "down_proj")
_LARGE, _FEW = 1 << 22, 4
"""A matrix of so many elements is read faster for four rows than for one, by up to a fifth."""
_UNUSUAL = ("has_bias", "is_transposed", "has_post_expert_norm", "_is_expert_parallel")


def can_pack(model: Any) -> bool:
    """Whether its weights are BF16, all in the memory of a CPU, and are multiplied with better than by torch
    alone."""
    import torch

    return (
        model.dtype == torch.bfloat16
        and all(type(t) is torch.nn.Parameter and t.device.type == "cpu" for t in model.parameters())
        and not any(hasattr(module, "_hf_hook") for module in model.modules())
        and is_better()
    )


def is_better() -> bool:
    """Whether weights are multiplied with better than by torch alone on this CPU."""
    return native.usable() or native.onednn_multiplies()


def is_packed(model: Any) -> bool:
    """Whether `pack` has been here."""
    return any(hasattr(t, "native") for t in model.parameters())


def pack(model: Any, on_copied: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Pack the matrices of the linear layers and experts of `model`, one a step.

    They stay parameters of the same names, sizes and numbers of bytes; of experts there is one for each.
    `on_copied` hears the names of those that lie where they were before no more.
    """
    from torch import nn

    modules: dict[str, Any] = dict(model.named_modules())
    shared = {id(m.weight) for m in modules.values() if isinstance(m, nn.Embedding)}
    for module in modules.values():  # experts first, while least is in memory
        for part in PARTS if _is_experts(module) else ():
            experts = module._parameters.pop(part)
            apart = getattr(experts, "apart", None)
            setattr(module, part, apart or _each_packed(experts.detach()))
            yield
    bare = set(_used_bare(modules))
    for name, module in modules.items():
        if type(module) is nn.Linear and fits(module.weight) and name not in bare:
            if _stays():
                weight: Any = module.weight
                weight.native = native.find(weight, module.bias)
                yield
            elif id(module.weight) not in shared:
                module.weight = packed([module.weight.detach()], module.bias)
                on_copied(f"{name}.weight")
                yield
            _take_over(module)


def _used_bare(modules: dict[str, Any]) -> Iterator[str]:
    """The names of those whose weights the code around them seems to take for itself."""
    for name in modules:
        parent, _, child = name.rpartition(".")
        if parent in modules and child in _taken(type(modules[parent]).__module__):
            yield name


@functools.cache
def _taken(module: str) -> frozenset[str]:
    """Of which attributes the code in this Python module takes the weight or bias."""
    return frozenset(re.findall(r"\bself\.(\w+)\.(?:weight|bias)\b", source_of(module)))


def use_packed_experts(model: Any) -> None:
    """Let `model` run its experts, which may be packed, as they are chosen; if usual ones is what it has."""
    if getattr(model.config, "_experts_implementation", None) == _USUAL_EXPERTS:
        kinds = [m for m in model.modules() if hasattr(m, "num_experts") and hasattr(m, "_apply_gate")]
        if kinds and all(is_usual(module) for module in kinds):
            _register()
            model.set_experts_implementation(_EXPERTS)


def _is_experts(module: Any) -> bool:
    parts = [module._parameters.get(part) for part in PARTS]
    return all(t is not None and t.ndim == 3 and fits(t) for t in parts) and is_usual(module)


def is_usual(module: Any) -> bool:
    """Whether these are experts as `run_experts` runs them."""
    return bool(getattr(module, "has_gate", False)) and not any(getattr(module, n, False) for n in _UNUSUAL)


def fits(weight: Any) -> bool:
    """Whether it is in BF16, and not packed yet."""
    import torch

    return bool(weight.dtype == torch.bfloat16 and not weight.is_mkldnn)


def _stays() -> bool:
    """Whether weights are multiplied with as they are."""
    return native.usable() and not native.packs()


def _each_packed(experts: Any) -> Any:
    from torch import nn

    return nn.ParameterList(packed([expert]) for expert in experts)


def packed(parts: Sequence[Any], bias: Any = None) -> Any:
    """Weights [outs, ins], one below the other, as they are multiplied with; a parameter.

    `native` tells our kernels how. What they have packed is in `held`, and the parameter has its shape alone:
    whoever computes with it all the same gets what is no number.
    """
    import torch

    held, matrices = native.pack(parts, bias) or (None, None)
    if held is not None:
        weight = held.new_full((), torch.nan).expand(sum(map(len, parts)), parts[0].shape[1])
    else:
        weight = parts[0] if len(parts) == 1 else torch.cat(list(parts))
        matrices = native.find(weight, bias)
        if not _stays() and native.onednn_multiplies():
            weight = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
    parameter: Any = torch.nn.Parameter(weight, requires_grad=False)
    parameter.native, parameter.held = matrices, held
    return parameter


def _take_over(module: Any) -> None:
    module.forward = functools.partial(_linear, module)


def _linear(module: Any, x: Any) -> Any:
    return _product(x, module.weight, module.bias)


def _product(x: Any, weight: Any, bias: Any = None) -> Any:
    """x [..., in] by weight [out, in], packed or not, and its bias [out]: [..., out]."""
    import torch

    matrices = getattr(weight, "native", None)
    if matrices is not None and x.dtype == weight.dtype:
        return native.multiply(x, matrices)[0]
    rows = x.numel() // x.shape[-1]
    if not weight.is_mkldnn:
        if rows <= native.MOST_PLAIN and bias is None and native.multiplies(weight):
            return native.multiply_plain(x.reshape(rows, -1), weight).view(*x.shape[:-1], -1)
        return torch.nn.functional.linear(x, weight, bias)
    more = _room(rows, weight) - rows
    if more == 0:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    padded = torch.nn.functional.pad(x.reshape(rows, -1), (0, 0, 0, more))
    out = torch.ops.mkldnn._linear_pointwise(padded, weight, bias, "none", [], "")
    return out[:rows].view(*x.shape[:-1], -1)


def _room(rows: int, weight: Any) -> int:
    """With how many rows so many are multiplied by `weight`."""
    if rows < _FEW:
        # Without BF16 of the CPU's own, oneDNN turns it into FP32, and each row takes its time.
        return _FEW if weight.numel() >= _LARGE and native.cpu_has(native.BF16) else rows
    return _rounded(rows)


def _rounded(rows: int) -> int:
    """The same up to 16; from there on in steps of an eighth or less."""
    step = max(4, 1 << (rows - 1).bit_length() - 4) if rows > 16 else 1
    return rows + -rows % step


@functools.cache
def _register() -> None:
    from transformers.integrations.moe import ExpertsInterface

    ExpertsInterface.register(_EXPERTS, run_experts)


def run_experts(module: Any, x: Any, index: Any, weights: Any) -> Any:
    """The weighted sum of each row's experts: x [n, hidden], index and weights [n, k] → [n, hidden]."""
    import torch

    rows, each = index.shape
    chosen = index.reshape(-1)
    if rows == 1:  # every expert has the one row
        hit, sizes, places, sorted_x = chosen.tolist(), [1] * each, torch.arange(each), x.expand(each, -1)
    else:
        counts = torch.bincount(chosen).tolist()
        hit = [n for n, count in enumerate(counts) if count]
        sizes = [_rounded(counts[n]) for n in hit]
        ends = list(itertools.accumulate(sizes))
        places = torch.empty_like(chosen)  # where each row stands for each of its experts
        places[chosen.argsort()] = torch.cat(
            [
                torch.arange(end - size, end - size + counts[n])
                for n, size, end in zip(hit, sizes, ends, strict=True)
            ]
        )
        tokens = chosen.new_zeros(ends[-1])
        tokens[places] = torch.arange(rows).repeat_interleave(each)
        sorted_x = x[tokens]

    def run(parts: Any, x: Any) -> Any:
        pieces = x.split(sizes)
        return torch.cat([_product(piece, parts[n]) for n, piece in zip(hit, pieces, strict=True)])

    out = run(module.down_proj, module._apply_gate(run(module.gate_up_proj, sorted_x)))
    return (out[places] * weights.reshape(-1, 1)).view(rows, each, -1).sum(1).to(x.dtype)
