"""Decoder layers in one call of a kernel, on a CPU.

Asked for one by one from Python its steps take, for a token alone, as long to begin as to do in small models,
and a tenth of its time in GLM-4.5-Air.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import kv, native


def described(module: Any) -> native.Layer | None:
    """A decoder layer of Llama's or GLM-4.5's kind, as the kernel knows it; None if it is not all in BF16 and
    packed."""
    attend, mlp = module.self_attn, module.mlp
    norms = [module.input_layernorm, module.post_attention_layernorm]
    if getattr(attend, "use_qk_norm", False):
        norms += [attend.q_norm, attend.k_norm]
    experts = getattr(mlp, "experts", None)
    dense = mlp if experts is None else mlp.shared_experts
    products = [
        _matrices(attend.q_proj, attend.k_proj, attend.v_proj),
        _matrices(attend.o_proj),
        _matrices(dense.gate_proj, dense.up_proj),
        _matrices(dense.down_proj),
    ]
    if not all(products) or not all(native.multiplies(norm.weight) for norm in norms):
        return None
    layer = native.Layer(
        hidden=attend.q_proj.in_features,
        heads=attend.q_proj.out_features // attend.head_dim,
        groups=attend.k_proj.out_features // attend.head_dim,
        size=attend.head_dim,
        scale=attend.scaling,
    )
    for name, norm in zip(("before", "between", "query", "key"), norms, strict=False):
        setattr(layer, name if name in ("before", "between") else f"{name}_norm", norm.weight.data_ptr())
        setattr(layer, f"{name}_eps", norm.variance_epsilon)
    layer.projections, layer.output, layer.opening, layer.closing = products
    return layer if experts is None or _has_routed(layer, mlp.gate, experts) else None


def _matrices(*linear: Any) -> native.Matrices | None:
    return _together([layer.weight for layer in linear])


def _together(weights: Sequence[Any]) -> native.Matrices | None:
    """Of packed weights, all of them."""
    found: list[Any] = [getattr(weight, "native", None) for weight in weights]
    return None if None in found else native.together([one for (one,) in found])


def _has_routed(layer: native.Layer, router: Any, experts: Any) -> bool:
    """Put them into what is known of the layer, if they can be computed so."""
    gates, downs = _together(experts.gate_up_proj), _together(experts.down_proj)
    if not gates or not downs or not native.chooses(router):
        return False
    layer.experts, layer.each = len(gates), router.top_k
    layer.router, layer.bias = router.weight.data_ptr(), router.e_score_correction_bias.data_ptr()
    layer.factor, layer.shared = router.routed_scaling_factor, router.norm_topk_prob
    layer.gates, layer.downs = gates, downs
    return True


def run(layer: native.Layer, number: int, x: Any, angles: tuple[Any, Any], cache: Any) -> Any:
    """x [1, n, hidden] after this layer of that number, the cache with its keys and values. `angles`: cos and
    sin [1, n, turned]. None where it is not in BF16, or its cache not such as grows in place."""
    rows = x.shape[1]
    if not native.is_bf16(x, *angles) or len(angles[0]) != 1:
        return None
    alone = native.in_order([layer])
    if cache is None:
        keys, values = (x.new_empty((1, layer.groups, rows, layer.size)) for _ in range(2))
        return native.run_layers(alone, x, *angles, [(keys, values)], 0)
    buffers = kv.opened(cache, number, rows)
    if buffers is None:
        return None
    out = native.run_layers(alone, x, *angles, [buffers], cache.layers[number].get_seq_length())
    kv.close(cache, number, rows)
    return out


def run_all(layers: native.Layers, x: Any, angles: tuple[Any, Any], cache: Any) -> Any:
    """The same for all layers of a model. None also where the cache holds nothing yet."""
    if not native.is_bf16(x, *angles) or not kv.is_whole(cache):
        return None
    known = cache.get_seq_length()
    length = known + x.shape[1]
    out = native.run_layers(layers, x, *angles, kv.whole(cache, length), known)
    kv.use(cache, length)
    return out
