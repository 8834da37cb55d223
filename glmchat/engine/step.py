"""A decode step of glm4_moe as plain tensor functions over whole KV buffers: what `compiled` compiles.

The position is a tensor and every shape stays as it is from token to token, so that the same kernels run
each time. Layers of one kind share their code, and with it one compilation.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Generator
from types import FunctionType, MethodType
from typing import Any

from .draft import LONGEST_LOOKUP
from .hybrid import are_apart
from .kv import ROOM_STEP

FEW = LONGEST_LOOKUP + 1
"""Rows that a step of decoding has at most. Of more, in a prompt, experts are grouped."""

_ATTENTION, _EXPERTS = "glmchat_whole", "glmchat_gathered"
_UNSEEN = -1e30
"""A score; finite, so that the difference of two is none that is not a number."""

Out = tuple[Any, Any]
Pieces = Generator[tuple[Callable[..., Any], Any], Any, Out]
"""A step that stops wherever something else than its device has to compute: it yields what does, and of what,
is sent what that made, and returns logits and states."""


class Step:
    """The step of a loaded glm4_moe, whose weights it shares.

    `run_layer` runs one layer, `open_layer` one up to its experts, which are in main memory; they are what to
    compile. They have code of their own in each Step, because torch counts what it compiles by code, and
    limits it.
    """

    def __init__(self, model: Any) -> None:
        _register()
        shared = {id(t): t for t in itertools.chain(model.parameters(), model.buffers())}
        twin = copy.deepcopy(model, shared)  # everything but the tensors
        twin.config._attn_implementation = _ATTENTION
        twin.config._experts_implementation = _EXPERTS
        for layer in twin.model.layers:
            layer.self_attn.layer_idx = 0  # a number of its own would make it code of its own
            router: Any = getattr(layer.mlp, "gate", None)
            if getattr(router, "num_group", 0) == 1:
                router.forward = MethodType(_route, router)
        self._twin = twin
        self.layers: list[Any] = list(twin.model.layers)
        self.run_layer, self.open_layer = (
            FunctionType(code.replace(), globals()) for code in (_run_layer.__code__, _open_layer.__code__)
        )

    def of(self, layer: Any) -> Callable[..., Any]:
        """`run_layer`, or `open_layer` if that is all of this one that the device can run."""
        return self.open_layer if are_apart(getattr(layer.mlp, "experts", None)) else self.run_layer

    def pieces(self, ids: Any, position: Any, buffers: list[tuple[Any, Any]]) -> Pieces:
        """Logits [n, vocab] and states [1, n, hidden], after the final norm, of ids [1, n].

        They stand from `position` [1] on, where their keys and values are written to the `buffers`
        [1, heads, room, size] of each layer. What stands there behind them is not looked at.
        """
        x, *rest = self.begin(ids, position, buffers[0][0].shape[2])
        for layer, (keys, values) in zip(self.layers, buffers, strict=True):
            run = self.of(layer)
            found = run(layer, x, *rest, in_parts(keys), in_parts(values))
            if run is self.run_layer:
                x = found
            else:
                x, shared, *given = found
                made = yield layer.mlp.experts.forward, given
                x = x + (made.view(x.shape) + shared)
        states = self._twin.model.norm(x)
        return self._twin.lm_head(states)[0], states

    def begin(self, ids: Any, position: Any, room: int) -> tuple[Any, Any, Any, Any, Any]:
        """What all layers are given: embeddings [1, n, hidden], cos and sin [1, n, rotary size], the mask
        [n, parts, ROOM_STEP] of what each row attends to, positions [n]."""
        import torch

        positions = position + torch.arange(ids.shape[1], device=ids.device)
        mask = torch.arange(room, device=ids.device).view(-1, ROOM_STEP) <= positions[:, None, None]
        x = self._twin.model.embed_tokens(ids)
        cos, sin = self._twin.model.rotary_emb(x, positions[None])
        return x, cos, sin, mask, positions


def run(pieces: Pieces) -> Out:
    """All of them, one after the other."""
    made = None
    try:
        while True:
            compute, given = pieces.send(made)
            made = compute(*given)
    except StopIteration as end:
        out: Out = end.value
        return out


def in_parts(buffer: Any) -> Any:
    """Keys or values [1, heads, room, size] as [1, heads, parts, ROOM_STEP, size], on the same memory."""
    return buffer.unflatten(2, (-1, ROOM_STEP))


def _run_layer(
    layer: Any, x: Any, cos: Any, sin: Any, mask: Any, positions: Any, keys: Any, values: Any
) -> Any:
    return layer(
        x,
        attention_mask=mask,
        position_embeddings=(cos, sin),
        past_key_values=_Slot(keys, values, positions),
    )


def _open_layer(
    layer: Any, x: Any, cos: Any, sin: Any, mask: Any, positions: Any, keys: Any, values: Any
) -> tuple[Any, Any, Any, Any, Any]:
    """x and what the shared experts make [1, n, hidden], and what the others are given: rows [n, hidden], the
    numbers of experts and their weights [n, k]."""
    out, _ = layer.self_attn(
        hidden_states=layer.input_layernorm(x),
        attention_mask=mask,
        position_embeddings=(cos, sin),
        past_key_values=_Slot(keys, values, positions),
    )
    x = x + out
    y = layer.post_attention_layernorm(x)
    _, weights, numbers = layer.mlp.gate(y)
    return x, layer.mlp.shared_experts(y), y.flatten(0, 1), numbers, weights


class _Slot:
    """One layer's buffers, in parts, as its attention knows caches."""

    def __init__(self, keys: Any, values: Any, positions: Any) -> None:
        self._keys, self._values, self._positions = keys, values, positions

    def update(self, keys: Any, values: Any, *_: Any) -> tuple[Any, Any]:
        part, place = self._positions // ROOM_STEP, self._positions % ROOM_STEP
        self._keys[:, :, part, place] = keys  # through a view torch would copy all of it
        self._values[:, :, part, place] = values
        return self._keys, self._values


@functools.cache
def _register() -> None:
    from transformers import AttentionInterface
    from transformers.integrations.moe import ExpertsInterface

    AttentionInterface.register(_ATTENTION, _attend)
    ExpertsInterface.register(_EXPERTS, _run_experts)


def _attend(
    module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float | None = None, **_: Any
) -> tuple[Any, None]:
    """query [1, heads, n, size]; key, value [1, groups, parts, ROOM_STEP, size]; mask [n, parts, ROOM_STEP]:
    [1, n, heads, size].

    No key is read more than once: the heads of a group are rows of one matrix product. Each part has a
    softmax of its own, and what it makes of the values is weighted at the end: over all of the room in one go
    a few of a GPU's processors would do the work.
    """
    _, heads, rows, size = query.shape
    groups, parts = key.shape[1:3]
    each = heads // groups
    grouped = query.reshape(groups, each * rows, size)
    scores = _product(grouped, key[0].flatten(1, 2).transpose(1, 2)) * (scaling or size**-0.5)
    scores = scores.view(groups, each, rows, parts, ROOM_STEP).masked_fill(~mask, _UNSEEN)
    highest = scores.amax(-1, keepdim=True)
    weights = (scores - highest).exp()
    share = (highest - highest.amax(-2, keepdim=True)).exp()  # 0 for a part of which nothing is seen
    share = share / (weights.sum(-1, keepdim=True) * share).sum(-2, keepdim=True)
    weights = weights.to(value.dtype).view(groups, each * rows, parts, ROOM_STEP).transpose(1, 2)
    found = _product(weights.flatten(0, 1), value[0].flatten(0, 1)).view(groups, parts, each * rows, size)
    out = (found * share.view(groups, each * rows, parts, 1).transpose(1, 2)).sum(1)
    return out.view(1, heads, rows, size).transpose(1, 2).to(query.dtype), None


def _product(a: Any, b: Any) -> Any:
    """a @ b in FP32. A GPU sums BF16 so; a CPU is given copies, which is exact and no slower there."""
    import torch

    if a.dtype == torch.float32 or a.device.type == "cpu":
        return torch.bmm(a.float(), b.float())
    return torch.bmm(a, b, out_dtype=torch.float32)


def _route(router: Any, x: Any) -> tuple[Any, Any, Any]:
    """As the forward of a router whose experts are one group, which needs not be sought first.

    x [..., hidden]: logits [n, experts], weights and numbers [n, k] of the experts that are chosen. They are
    sorted by comparing each with each: that becomes part of a kernel, as torch's topk does not.
    """
    import torch

    x = x.view(-1, router.hidden_dim)
    logits = (router.weight.float() * x.float()[:, None]).sum(-1)
    scores = logits.sigmoid()
    ranked = scores + router.e_score_correction_bias
    numbers = torch.arange(ranked.shape[-1], device=x.device)
    mine, other = ranked[..., None], ranked[:, None]
    before = (other > mine) | ((other == mine) & (numbers < numbers[:, None]))
    is_kth = before.sum(-1)[:, None] == numbers[: router.top_k, None]
    chosen = (is_kth * numbers).sum(-1).clamp(max=len(numbers) - 1)  # NaN is never before another
    weights = scores.gather(1, chosen)
    if router.norm_topk_prob:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return logits, weights * router.routed_scaling_factor, chosen


def _run_experts(module: Any, x: Any, index: Any, weights: Any) -> Any:
    """The sum of each row's experts: x [n, hidden], index and weights [n, k] → [n, hidden].

    Sums of products with gathered weights: once compiled, the weights that are needed are read once and
    copied nowhere. Each row reads those of its own experts; so where there are more rows they are grouped by
    experts, if torch has that product.
    """
    import torch

    rows, each = index.shape
    can_group = x.dtype == torch.bfloat16 and hasattr(torch.nn.functional, "grouped_mm")
    if can_group and rows > FEW:
        return _run_groups(module, x, index, weights)
    chosen = index.reshape(-1)
    repeated = x.repeat_interleave(each, dim=0)
    inner = module._apply_gate(_gathered(module.gate_up_proj, chosen, repeated))
    out = _gathered(module.down_proj, chosen, inner).float() * weights.reshape(-1, 1)
    return out.view(rows, each, -1).sum(1).to(x.dtype)


def _run_groups(module: Any, x: Any, index: Any, weights: Any) -> Any:
    """The same; an expert's rows stand together, and its weights are read once."""
    import torch

    rows, each = index.shape
    chosen, order = torch.sort(index.reshape(-1))
    ends = torch.searchsorted(
        chosen, torch.arange(module.num_experts, device=x.device), right=True, out_int32=True
    )
    grouped = torch.nn.functional.grouped_mm
    inner = module._apply_gate(grouped(x[order // each], module.gate_up_proj.transpose(1, 2), offs=ends))
    out = grouped(inner, module.down_proj.transpose(1, 2), offs=ends)
    out = torch.empty_like(out).index_copy(0, order, out).float() * weights.reshape(-1, 1)
    return out.view(rows, each, -1).sum(1).to(x.dtype)


def _gathered(weight: Any, chosen: Any, x: Any) -> Any:
    """weight [experts, out, in], of which `chosen` [m] are multiplied with the rows x [m, in]: [m, out]."""
    return (weight[chosen].float() * x.float()[:, None]).sum(-1).to(x.dtype)
