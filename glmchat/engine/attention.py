"""Attention of a few new tokens to many cached ones, on a CPU.

torch's own kernel reads keys and values once for each query head, and transformers copies them first where
there is a mask. Two matrix products over each group of heads take an eighth of the time for one BF16 token
after 6,000, and are more exact. A whole model of 270M parameters decodes 1.8 times as fast after 4,000.
"""

from __future__ import annotations

import functools
from typing import Any

MOST_ROWS = 16
"""New tokens; for more of them torch's kernel is the faster one."""
_NAME = "glmchat_sdpa"
_MORE = (
    "softcap",
    "position_bias",
    "s_aux",
    "cache",
)  # what only torch's path knows


def use_fast_decode(model: Any) -> None:
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
        if not usual or rows > MOST_ROWS or not (masked or (rows == 1 and attention_mask is None)):
            out: tuple[Any, Any] = sdpa_attention_forward(
                module, query, key, value, attention_mask, scaling=scaling, **more
            )
            return out
        return _attend(query, key, value, attention_mask, scaling), None

    AttentionInterface.register(_NAME, forward)
    AttentionMaskInterface.register(_NAME, sdpa_mask)


def _attend(query: Any, key: Any, value: Any, mask: Any, scaling: float | None) -> Any:
    """query [1, heads, n, d]; key, value [1, groups, m, d]; mask [1, 1, n, m] or None: [1, n, heads, d]."""
    _, heads, rows, size = query.shape
    groups = key.shape[1]
    grouped = query.float().reshape(1, groups, heads // groups * rows, size)
    scores = grouped @ key.float().transpose(-1, -2) * (scaling or size**-0.5)
    if mask is not None:
        scores = scores.view(1, heads, rows, -1)
        added = scores.masked_fill(~mask, float("-inf")) if not mask.is_floating_point() else scores + mask
        scores = added.view(1, groups, heads // groups * rows, -1)
    out = scores.softmax(-1) @ value.float()
    return out.view(1, heads, rows, -1).transpose(1, 2).to(query.dtype).contiguous()
