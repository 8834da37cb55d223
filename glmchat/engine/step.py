"""A decode step of glm4_moe as plain tensor functions over whole KV buffers: what `compiled` compiles.

The position is a tensor and every shape stays as it is from token to token, so that the same kernels run
each time. Layers of one kind share their code, and with it one compilation.
"""

from __future__ import annotations

import copy
import functools
import itertools
from types import FunctionType
from typing import Any

_ATTENTION, _EXPERTS = "glmchat_whole", "glmchat_gathered"


class Step:
    """The step of a loaded glm4_moe, whose weights it shares.

    `run_layer` runs one layer; it is what to compile. It has code of its own in each Step, because torch
    counts what it compiles by code, and limits it.
    """

    def __init__(self, model: Any) -> None:
        _register()
        shared = {id(t): t for t in itertools.chain(model.parameters(), model.buffers())}
        twin = copy.deepcopy(model, shared)  # everything but the tensors
        twin.config._attn_implementation = _ATTENTION
        twin.config._experts_implementation = _EXPERTS
        for layer in twin.model.layers:
            layer.self_attn.layer_idx = 0  # a number of its own would make it code of its own
        self._twin = twin
        self.layers: list[Any] = list(twin.model.layers)
        code = _run_layer.__code__
        self.run_layer: Any = FunctionType(code.replace(), _run_layer.__globals__)

    def run(self, ids: Any, position: Any, buffers: list[tuple[Any, Any]]) -> tuple[Any, Any]:
        """Logits [n, vocab] and states [1, n, hidden], after the final norm, of ids [1, n].

        They stand from `position` [1] on, where their keys and values are written to the `buffers`
        [1, heads, room, size] of each layer. What stands there behind them is not looked at.
        """
        x, *rest = self.begin(ids, position, buffers[0][0].shape[2])
        for layer, (keys, values) in zip(self.layers, buffers, strict=True):
            x = self.run_layer(layer, x, *rest, keys, values)
        states = self._twin.model.norm(x)
        return self._twin.lm_head(states)[0], states

    def begin(self, ids: Any, position: Any, room: int) -> tuple[Any, Any, Any, Any, Any]:
        """What all layers are given: embeddings [1, n, hidden], cos and sin [1, n, rotary size], the mask
        [n, room] of what each row attends to, positions [n]."""
        import torch

        positions = position + torch.arange(ids.shape[1], device=ids.device)
        mask = torch.arange(room, device=ids.device) <= positions[:, None]
        x = self._twin.model.embed_tokens(ids)
        cos, sin = self._twin.model.rotary_emb(x, positions[None])
        return x, cos, sin, mask, positions


def _run_layer(
    layer: Any, x: Any, cos: Any, sin: Any, mask: Any, positions: Any, keys: Any, values: Any
) -> Any:
    return layer(
        x,
        attention_mask=mask,
        position_embeddings=(cos, sin),
        past_key_values=_Slot(keys, values, positions),
    )


class _Slot:
    """One layer's part of a cache, as its attention knows caches."""

    def __init__(self, keys: Any, values: Any, positions: Any) -> None:
        self._keys, self._values, self._positions = keys, values, positions

    def update(self, keys: Any, values: Any, *_: Any) -> tuple[Any, Any]:
        self._keys.index_copy_(2, self._positions, keys)
        self._values.index_copy_(2, self._positions, values)
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
    """query [1, heads, n, size]; key, value [1, groups, room, size]; mask [n, room]: [1, n, heads, size].

    No key is read more than once: the heads of a group are rows of one matrix product.
    """
    _, heads, rows, size = query.shape
    groups = key.shape[1]
    grouped = query.reshape(groups, heads // groups * rows, size)
    scores = _product(grouped, key[0].transpose(1, 2)) * (scaling or size**-0.5)
    scores = scores.view(groups, heads // groups, rows, -1).masked_fill(~mask, float("-inf"))
    weights = scores.softmax(-1).view(groups, heads // groups * rows, -1)
    out = _product(weights.to(value.dtype), value[0])
    return out.view(1, heads, rows, size).transpose(1, 2).to(query.dtype), None


def _product(a: Any, b: Any) -> Any:
    """a @ b in FP32. A GPU sums BF16 so; a CPU is given copies, which is exact and no slower there."""
    import torch

    if a.dtype == torch.float32 or a.device.type == "cpu":
        return torch.bmm(a.float(), b.float())
    return torch.bmm(a, b, out_dtype=torch.float32)


def _run_experts(module: Any, x: Any, index: Any, weights: Any) -> Any:
    """The sum of each row's experts: x [n, hidden], index and weights [n, k] → [n, hidden].

    Sums of products with gathered weights: once compiled, the weights that are needed are read once and
    copied nowhere. Each row reads those of its own experts, so it is meant for few rows.
    """
    rows, each = index.shape
    chosen = index.reshape(-1)
    repeated = x.repeat_interleave(each, dim=0)
    inner = module._apply_gate(_gathered(module.gate_up_proj, chosen, repeated))
    out = _gathered(module.down_proj, chosen, inner).float() * weights.reshape(-1, 1)
    return out.view(rows, each, -1).sum(1).to(x.dtype)


def _gathered(weight: Any, chosen: Any, x: Any) -> Any:
    """weight [experts, out, in], of which `chosen` [m] are multiplied with the rows x [m, in]: [m, out]."""
    return (weight[chosen].float() * x.float()[:, None]).sum(-1).to(x.dtype)
