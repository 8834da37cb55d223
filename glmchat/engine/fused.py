"""The small steps of a layer on a CPU, each by one fused kernel instead of a dozen of torch's operations.

For a token alone those take longer to begin than to do: a quarter of its time in small models, and almost a
millisecond in each layer of GLM-4.5-Air. Which modules they are is told by what these have; whether the
kernels compute the same is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from . import attention, native

Forward = Callable[..., Any]


def use_fused(model: Any) -> None:
    """Let the modules of `model`, all of it in BF16 on a CPU, take kernels/fused.c where they can."""
    if not native.usable():
        return
    agree: dict[tuple[type, str, int], bool] = {}
    for module in model.modules():
        for step in _STEPS:
            if not (width := step.width(module)):
                continue
            ours, kind = step.make(module), (type(module), step.name, width)
            if kind not in agree:
                agree[kind] = _agree(ours, getattr(module, step.name), step.inputs(module, width))
            if agree[kind]:
                setattr(module, step.name, ours)


def _agree(ours: Forward, theirs: Forward, inputs: Sequence[Any]) -> bool:
    """Whether both make the same of them."""
    import torch

    try:
        with torch.inference_mode():
            pairs = zip(_parts(ours(*inputs)), _parts(theirs(*inputs)), strict=True)
            return all(torch.allclose(a, b, rtol=0.02, atol=1e-3) for a, b in pairs)
    except Exception:  # it is something else that has what we looked for
        return False


def _parts(found: Any) -> tuple[Any, ...]:
    """What can be compared: of attention without its weights; experts are chosen in any order."""
    if not isinstance(found, tuple):
        return (found,)
    if len(found) == 2:
        return found[:1]
    logits, weights, numbers = found
    return logits, logits.new_zeros(logits.shape).scatter_(1, numbers, weights)


def _rows(_: Any, width: int) -> tuple[Any, ...]:
    """Some rows [n, width]."""
    import torch

    return (torch.randn(3, width, generator=torch.Generator().manual_seed(0)).bfloat16(),)


def _rows_and_angles(module: Any, width: int) -> tuple[Any, ...]:
    """What attention is given: [1, n, width], cos and sin [1, n, size], no mask."""
    import torch

    (x,) = _rows(module, width)
    half = torch.linspace(0, 6, 3 * module.head_dim // 2).view(1, 3, -1)
    angles = torch.cat([half, half], dim=-1)
    return x[None], (angles.cos().to(x.dtype), angles.sin().to(x.dtype)), None


def _together(*layers: Any) -> Callable[[Any], Sequence[Any]]:
    """What these linear layers make of their common input, in one go if they are packed."""
    found: list[Any] = [getattr(layer.weight, "native", None) for layer in layers]
    if None in found:
        return lambda x: [layer(x) for layer in layers]
    matrices = native.together([one for (one,) in found])
    return lambda x: native.multiply(x, matrices)


def _norm(module: Any) -> Forward:
    theirs, weight, eps = module.forward, module.weight, module.variance_epsilon
    return lambda x: native.norm(x, weight, eps) if x.dtype == weight.dtype else theirs(x)


def _norm_width(module: Any) -> int:
    fits = hasattr(module, "variance_epsilon") and native.multiplies(module.weight)
    return len(module.weight) if fits else 0


def _attention(module: Any) -> Forward:
    project = _together(module.q_proj, module.k_proj, module.v_proj)
    normed = getattr(module, "use_qk_norm", False)

    def forward(
        hidden_states: Any,
        position_embeddings: tuple[Any, Any],
        attention_mask: Any,
        past_key_values: Any = None,
        **more: Any,
    ) -> tuple[Any, None]:
        shape = hidden_states.shape[:-1]
        query, key, value = (t.view(*shape, -1, module.head_dim) for t in project(hidden_states))
        if normed:
            query, key = module.q_norm(query), module.k_norm(key)
        query, key = (native.rotate(t, *position_embeddings).transpose(1, 2) for t in (query, key))
        value = value.transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, module.layer_idx)
        out, _ = attention.native_attention(
            module, query, key, value, attention_mask, scaling=module.scaling, **more
        )
        return module.o_proj(out.reshape(*shape, -1)), None

    return forward


def _attention_width(module: Any) -> int:
    """Only of kinds whose code is known: what a window does to attention is not seen in a few rows."""
    known = type(module).__name__ in ("Glm4MoeAttention", "LlamaAttention")
    ours = known and module.config._attn_implementation == attention.NATIVE
    return module.q_proj.in_features if ours else 0


def _mlp(module: Any) -> Forward:
    both = _together(module.gate_proj, module.up_proj)
    return lambda x: module.down_proj(native.gate(*both(x)))


def _mlp_width(module: Any) -> int:
    layers = [getattr(module, f"{name}_proj", None) for name in ("gate", "up", "down")]
    return getattr(layers[0], "in_features", 0) if None not in layers else 0


def _gate(_: Any) -> Forward:
    return lambda x: native.gate(*x.chunk(2, dim=-1))


def _gate_width(module: Any) -> int:
    return 64 if hasattr(module, "_apply_gate") else 0  # any will do


def _route(module: Any) -> Forward:
    def forward(x: Any) -> tuple[Any, Any, Any]:
        logits = native.multiply_plain(x.reshape(-1, x.shape[-1]), module.weight, exact=True)
        weights, numbers = native.choose(
            logits,
            module.e_score_correction_bias,
            module.top_k,
            shared=module.norm_topk_prob,
            scale=module.routed_scaling_factor,
        )
        return logits, weights, numbers

    return forward


def _route_width(module: Any) -> int:
    import torch

    bias = getattr(module, "e_score_correction_bias", None)
    routes = bias is not None and bias.dtype == torch.float32 and getattr(module, "num_group", 0) == 1
    return module.weight.shape[1] if routes and native.multiplies(module.weight) else 0


class _Step(NamedTuple):
    name: str
    """Of the method that is replaced."""
    make: Callable[[Any], Forward]
    """What replaces it in a module."""
    width: Callable[[Any], int]
    """Of its input; 0 for a module that has none such."""
    inputs: Callable[[Any, int], Sequence[Any]] = _rows
    """To try it with."""


_STEPS = (
    _Step("forward", _norm, _norm_width),
    _Step("forward", _attention, _attention_width, _rows_and_angles),
    _Step("forward", _mlp, _mlp_width),
    _Step("_apply_gate", _gate, _gate_width),
    _Step("forward", _route, _route_width),
)
