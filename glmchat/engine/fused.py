"""A layer's experts and its small steps on a CPU, each one kernel instead of a dozen of torch's operations.

For a token alone those take longer to begin than to do: a quarter of its time in small models, and almost a
millisecond in each layer of GLM-4.5-Air. Which modules they are is told by what these have; whether the
kernels compute the same is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from . import attention, layer, native

Forward = Callable[..., Any]


def use_fused(model: Any) -> None:
    """Let the modules of `model`, all of it in BF16 on a CPU, take the kernels where they can."""
    if not native.usable():
        return
    agree: dict[tuple[Any, ...], bool] = {}
    for step in _STEPS:
        for module in model.modules():
            if not (width := step.width(module)):
                continue
            ours, kind = step.make(module), (type(module), width, *map(type, module.children()))
            if kind not in agree:
                agree[kind] = _agree(ours, module.forward, step.inputs(module, width), step.scales)
            if agree[kind]:
                module.forward = ours


def whole_layers(model: Any) -> native.Layers | None:
    """All layers of `model`, if each is one call and attends to all that came before, so that they need no
    mask."""
    layers = getattr(getattr(model, "model", None), "layers", None) or ()
    whole: list[Any] = [getattr(layer.forward, "whole", None) for layer in layers]
    return native.in_order(whole) if whole and None not in whole else None


def _agree(ours: Forward, theirs: Forward, inputs: Sequence[Any], scales: Sequence[float]) -> bool:
    """Whether both make the same of them, and about the same of so many times as large ones."""
    import torch

    def pairs(scale: float) -> Iterator[tuple[Any, Any]]:
        given = inputs if scale == 1 else (inputs[0] * scale, *inputs[1:])
        return zip(_parts(ours(*given)), _parts(theirs(*given)), strict=True)

    try:
        with torch.inference_mode():
            same = all(torch.allclose(a, b, rtol=0.02, atol=1e-3) for a, b in pairs(1))
            return same and all(
                float((a - b).float().norm()) <= 0.02 * float(b.float().norm())
                for scale in scales
                for a, b in pairs(scale)
            )
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

    def forward(x: Any, *more: Any, **named: Any) -> Any:
        if more or named or x.dtype != weight.dtype:  # some take a gate as well
            return theirs(x, *more, **named)
        return native.norm(x, weight, eps)

    return forward


def _norm_width(module: Any) -> int:
    fits = hasattr(module, "variance_epsilon") and native.multiplies(module.weight)
    return len(module.weight) if fits else 0


def _attention(module: Any) -> Forward:
    project, close = _together(module.q_proj, module.k_proj, module.v_proj), _together(module.o_proj)
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
            query, key = module.q_norm.forward(query), module.k_norm.forward(key)
        native.rotate(query, key, *position_embeddings)
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, module.layer_idx)
        out, _ = attention.native_attention(
            module, query, key, value, attention_mask, scaling=module.scaling, **more
        )
        return close(out.reshape(*shape, -1))[0], None

    return forward


def _attention_width(module: Any) -> int:
    """Only of kinds whose code is known: what a window does to attention is not seen in a few rows."""
    known = type(module).__name__ in ("Glm4MoeAttention", "LlamaAttention")
    ours = known and module.config._attn_implementation == attention.NATIVE
    return module.q_proj.in_features if ours else 0


def _layer(module: Any) -> Forward:
    """All of it in one call where it can be. Else its modules are not called but run: torch looks for hooks
    in each, which nobody has set."""
    attend, mlp = module.self_attn, module.mlp
    before, between = module.input_layernorm, module.post_attention_layernorm
    parts = [mlp] if hasattr(mlp, "gate_proj") else [mlp.experts, mlp.shared_experts]
    whole = layer.described(module) if all(map(_is_ours, parts)) else None

    def forward(
        hidden_states: Any,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        use_cache: Any = False,
        position_embeddings: Any = None,
        **more: Any,
    ) -> Any:
        if whole is not None and attention.is_plain(attend, hidden_states, attention_mask, more):
            out = layer.run(whole, attend.layer_idx, hidden_states, position_embeddings, past_key_values)
            if out is not None:
                return out
        out, _ = attend.forward(
            hidden_states=before.forward(hidden_states),
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **more,
        )
        x = hidden_states + out
        return x + mlp.forward(between.forward(x))

    forward.whole = whole  # type: ignore[attr-defined]
    return forward


def _layer_width(module: Any) -> int:
    known = type(module).__name__ in ("Glm4MoeDecoderLayer", "LlamaDecoderLayer")
    return _attention_width(module.self_attn) if known else 0


def _layer_inputs(module: Any, width: int) -> tuple[Any, ...]:
    x, angles, mask = _rows_and_angles(module.self_attn, width)
    return x, mask, None, None, False, angles


def _mlp(module: Any) -> Forward:
    opening, closing = _together(module.gate_proj, module.up_proj), _together(module.down_proj)
    return lambda x: closing(native.gate(*opening(x)))[0]


def _mlp_width(module: Any) -> int:
    layers = [getattr(module, f"{name}_proj", None) for name in ("gate", "up", "down")]
    return getattr(layers[0], "in_features", 0) if None not in layers else 0


def _is_ours(module: Any) -> bool:
    """Whether it took a kernel."""
    return getattr(module.forward, "__module__", None) == __name__


def _experts(module: Any) -> Forward:
    import torch

    theirs = module.forward
    gates, downs = (_matrices(parts) for parts in (module.gate_up_proj, module.down_proj))

    def forward(x: Any, numbers: Any, weights: Any) -> Any:
        if x.dtype != torch.bfloat16:
            return theirs(x, numbers, weights)
        return native.run_experts(x, numbers, weights.float(), gates, downs)

    return forward


def _matrices(parts: Any) -> native.Matrices:
    return native.together([one for part in parts for one in part.native])


def _experts_width(module: Any) -> int:
    from torch.nn import ParameterList

    parts = [getattr(module, f"{name}_proj", None) for name in ("gate_up", "down")]
    packed = all(isinstance(part, ParameterList) and all(one.native for one in part) for part in parts)
    return int(parts[0][0].native[0].ins) if packed else 0  # type: ignore[index]


def _rows_and_experts(module: Any, width: int) -> tuple[Any, ...]:
    """What experts are given: rows [n, width], numbers and weights [n, k]."""
    import torch

    numbers = torch.arange(6).view(3, 2) % len(module.down_proj)
    return *_rows(module, width), numbers, torch.tensor([[1.0, 0.5], [0.1, 0.0], [2.0, 0.3]])


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
    return module.weight.shape[1] if native.chooses(module) else 0


class _Step(NamedTuple):
    make: Callable[[Any], Forward]
    """What replaces the forward of a module."""
    width: Callable[[Any], int]
    """Of its input; 0 for a module that has none such."""
    inputs: Callable[[Any, int], Sequence[Any]] = _rows
    """To try it with."""
    scales: Sequence[float] = ()
    """And so many times as large: how a gate bends, or where it ends, is not seen in all of them."""


_LARGER = (1.0, 30.0, 1000.0)
_STEPS = (
    _Step(_norm, _norm_width),
    _Step(_attention, _attention_width, _rows_and_angles),
    _Step(_mlp, _mlp_width, scales=_LARGER),
    _Step(_experts, _experts_width, _rows_and_experts, _LARGER),
    _Step(_route, _route_width),
    _Step(_layer, _layer_width, _layer_inputs),  # compared with what it has of the others
)
