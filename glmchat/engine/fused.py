"""The small steps of a layer on a CPU, each by one fused kernel instead of a dozen of torch's operations.

For a token alone those take longer to begin than to do: a fifth of its time in small models, and almost a
millisecond in each layer of GLM-4.5-Air. Which modules they are is told by what these have; whether a kernel
computes the same is tried.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from . import native

_ROWS = 3


def use_fused(model: Any) -> None:
    """Let the modules of `model`, all of it in BF16 on a CPU, take kernels/fused.c where they can."""
    if not native.usable():
        return
    agree: dict[tuple[type, str, int], bool] = {}
    for module in model.modules():
        for name, fused, width in _FUSED:
            if size := width(module):
                ours, kind = functools.partial(fused, module), (type(module), name, size)
                if kind not in agree:
                    agree[kind] = _agree(ours, getattr(module, name), size)
                if agree[kind]:
                    setattr(module, name, ours)


def _agree(ours: Callable[[Any], Any], theirs: Callable[[Any], Any], size: int) -> bool:
    """Whether both make the same of some rows [n, size]."""
    import torch

    x = torch.randn(_ROWS, size, generator=torch.Generator().manual_seed(0)).bfloat16()
    try:
        with torch.inference_mode():
            pairs = zip(_parts(ours(x)), _parts(theirs(x)), strict=True)
            return all(torch.allclose(a, b, rtol=0.01, atol=1e-4) for a, b in pairs)
    except Exception:  # it is something else that has what we looked for
        return False


def _parts(found: Any) -> tuple[Any, ...]:
    """What can be compared: experts are chosen in any order."""
    if not isinstance(found, tuple):
        return (found,)
    logits, weights, numbers = found
    return logits, logits.new_zeros(logits.shape).scatter_(1, numbers, weights)


def _norm(module: Any, x: Any) -> Any:
    return native.norm(x, module.weight, module.variance_epsilon)


def _norm_width(module: Any) -> int:
    fits = hasattr(module, "variance_epsilon") and native.multiplies(module.weight)
    return len(module.weight) if fits else 0


def _mlp(module: Any, x: Any) -> Any:
    return module.down_proj(native.gate(module.gate_proj(x), module.up_proj(x)))


def _mlp_width(module: Any) -> int:
    layers = [getattr(module, f"{name}_proj", None) for name in ("gate", "up", "down")]
    return getattr(layers[0], "in_features", 0) if None not in layers else 0


def _gate(_: Any, x: Any) -> Any:
    return native.gate(*x.chunk(2, dim=-1))


def _gate_width(module: Any) -> int:
    return 64 if hasattr(module, "_apply_gate") else 0  # any will do


def _route(module: Any, x: Any) -> tuple[Any, Any, Any]:
    logits = native.multiply_plain(x.reshape(-1, x.shape[-1]), module.weight, exact=True)
    weights, numbers = native.choose(
        logits,
        module.e_score_correction_bias,
        module.top_k,
        shared=module.norm_topk_prob,
        scale=module.routed_scaling_factor,
    )
    return logits, weights, numbers


def _route_width(module: Any) -> int:
    routes = hasattr(module, "e_score_correction_bias") and getattr(module, "num_group", 0) == 1
    return module.weight.shape[1] if routes and native.multiplies(module.weight) else 0


_FUSED: tuple[tuple[str, Callable[..., Any], Callable[[Any], int]], ...] = (
    ("forward", _norm, _norm_width),
    ("forward", _mlp, _mlp_width),
    ("_apply_gate", _gate, _gate_width),
    ("forward", _route, _route_width),
)
"""What of a module is replaced, by what, and how wide its input is; 0 where there is nothing to replace."""
