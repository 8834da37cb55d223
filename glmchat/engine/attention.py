"""Attention of new tokens to cached ones.

On a CPU, transformers repeats the keys and values of a group for each of its query heads; torch's kernel,
which can do without, reads them as often. Here all heads of a group are rows of one query, so that what they
share is read once. A token after 4,000 in GLM-4.5-Air's shape takes a fortieth of the time, and nothing takes
longer.

That is said to torch's kernel; or to the one in kernels/attention.c, which for BF16 on some CPUs is 1.6 to
four times as fast.

On a GPU, torch's kernel is told that a chunk of a prompt comes after others; transformers gives it a mask,
with which it takes a third to a half longer.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from . import native
from .latent import attend_to_latents, leave_latents, takes
from .source import source_of

GROUPED, NATIVE, CAUSAL = "glmchat_grouped", "glmchat_native", "glmchat_causal"
_MORE = (
    "softcap",
    "position_bias",
    "s_aux",
    "cache",
)  # what only torch's path knows


def use_own_attention(model: Any) -> None:
    """Let `model`, which a CPU or GPUs compute, attend in this way if it would by torch's `sdpa`.

    Its experts may be elsewhere.
    """
    weights = (p for name, p in model.named_parameters() if ".experts." not in name)
    kinds = {p.device.type for p in weights} - {"meta"}  # moved to a GPU when it is needed
    if getattr(model.config, "_attn_implementation", None) != "sdpa" or kinds not in ({"cpu"}, {"cuda"}):
        return
    if _asks_for_its_name(model):
        return
    _register()
    heads = getattr(model.config, "num_attention_heads", 0)
    size = getattr(model.config, "head_dim", None) or (heads and model.config.hidden_size // heads)
    on_cpu = NATIVE if size and native.attends(model.dtype, size) else GROUPED
    model.set_attn_implementation(CAUSAL if kinds == {"cuda"} else on_cpu)
    leave_latents(model, _attend_together)


def _asks_for_its_name(model: Any) -> bool:
    """Whether its code does something else where attention is called otherwise than transformers calls it."""
    source = source_of(type(model).__module__)
    return re.search(r"_attn_implementation (==|!=|in|not in) ", source) is not None


@functools.cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(GROUPED, _knowing_latents(_grouped))
    AttentionMaskInterface.register(GROUPED, sdpa_mask)
    AttentionInterface.register(NATIVE, _knowing_latents(native_attention))
    AttentionInterface.register(CAUSAL, _knowing_latents(_causal))
    for name in (NATIVE, CAUSAL):
        AttentionMaskInterface.register(name, _mask_or_causal)


def _knowing_latents(usual: Any) -> Any:
    """The same, but for modules that leave latents as they are."""

    def attend(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: Any = None, **more: Any
    ) -> tuple[Any, Any]:
        expand = getattr(module, "expand_latents", None)
        if expand is not None:
            masked = attention_mask is None or attention_mask.shape[1] == 1
            if masked and _is_usual(query, more) and takes(module, query.shape[2]):
                out = attend_to_latents(module, query, key, value, attention_mask, scaling, _attend_together)
                return out, None
            key, value = expand(key, value)
        out, weights = usual(module, query, key, value, attention_mask, scaling, **more)
        return out, weights

    return attend


def _attend_together(query: Any, keys: Any, mask: Any, scale: float) -> Any:
    """latent.Attend: new tokens, the last of all, attend to those before them."""
    rows, length = query.shape[2], keys.shape[2]
    if mask is None and native.takes(query, keys):
        return native.attend(query, keys, keys, scale)
    if mask is None and rows > 1:
        mask = _lower_right(query, length)
    return _attend(query, keys, keys, mask, scale)


def _grouped(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: Any = None, **more: Any
) -> tuple[Any, Any]:
    rows = query.shape[2]
    masked = attention_mask is not None and attention_mask.shape[1] == 1
    if not _is_usual(query, more) or not (masked or (rows == 1 and attention_mask is None)):
        return _theirs(module, query, key, value, attention_mask, scaling, **more)
    return _attend(query, key, value, attention_mask, scaling), None


def native_attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: Any = None, **more: Any
) -> tuple[Any, Any]:
    if attention_mask is None:
        _, _, rows, size = query.shape
        length = key.shape[2]
        if rows == 1 or _is_causal(module, more):
            if _is_usual(query, more) and native.takes(query, key, value):
                return native.attend(query, key, value, size**-0.5 if scaling is None else scaling), None
            if 1 < rows < length:
                attention_mask = _lower_right(query, length)
    return _grouped(module, query, key, value, attention_mask, scaling, **more)


def _causal(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: Any = None, **more: Any
) -> tuple[Any, Any]:
    from torch.backends.cuda import SDPAParams, can_use_flash_attention
    from torch.nn.attention.bias import causal_lower_right
    from torch.nn.functional import scaled_dot_product_attention

    rows, length = query.shape[2], key.shape[2]
    if attention_mask is None and 1 < rows < length and _is_causal(module, more):
        asked = SDPAParams(query, key, value, None, 0.0, False, True)
        if _is_usual(query, more) and can_use_flash_attention(asked):
            mask: Any = causal_lower_right(rows, length)
            out = scaled_dot_product_attention(query, key, value, mask, scale=scaling, enable_gqa=True)
            return out.transpose(1, 2).contiguous(), None
        attention_mask = _lower_right(query, length)
    return _theirs(module, query, key, value, attention_mask, scaling, **more)


def _theirs(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: Any, **more: Any
) -> tuple[Any, Any]:
    """The way of transformers."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    out: tuple[Any, Any] = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **more
    )
    return out


def _lower_right(query: Any, length: int) -> Any:
    """The mask [1, 1, n, length] of queries [1, heads, n, d] that are the last of so many tokens."""
    rows = query.shape[2]
    return query.new_ones((1, 1, rows, length), dtype=bool).tril(length - rows)


def _mask_or_causal(**asked: Any) -> Any:
    """sdpa_mask's mask; None also where new tokens, the last of all, attend to all before them."""
    from transformers.masking_utils import sdpa_mask

    offset = asked.get("q_offset")
    if (
        asked.get("allow_is_causal_skip", True)
        and asked.get("attention_mask") is None
        and asked.get("local_size") is None
        and asked["batch_size"] == 1
        and not asked.get("kv_offset", 0)
        and isinstance(offset, int)
        and offset + asked["q_length"] == asked["kv_length"]
    ):
        return None
    return sdpa_mask(**asked)


def is_plain(module: Any, x: Any, mask: Any, more: dict[str, Any]) -> bool:
    """Whether each of the tokens x [1, n, hidden] attends to itself and to all before it, and that is all."""
    return mask is None and (x.shape[1] == 1 or _is_causal(module, more)) and _is_usual(x, more)


def _is_causal(module: Any, more: dict[str, Any]) -> bool:
    """Whether no mask means that a token attends to those before it, and not that all attend to all."""
    return False not in (more.get("is_causal"), getattr(module, "is_causal", None))


def _is_usual(query: Any, more: dict[str, Any]) -> bool:
    special = more.get("dropout") or any(more.get(name) is not None for name in _MORE)
    return not special and more.get("is_causal") is not False and len(query) == 1


def _attend(query: Any, key: Any, value: Any, mask: Any, scaling: float | None) -> Any:
    """query [1, heads, n, d]; key [1, groups, m, d], value [1, groups, m, e]; mask [1, 1, n, m] or None:
    [1, n, heads, e]."""
    import torch

    _, heads, rows, size = query.shape
    groups, length = key.shape[1], key.shape[2]
    each = heads // groups
    if mask is not None:
        mask = mask.expand(1, each, rows, length).reshape(1, 1, each * rows, length)
    out = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(1, groups, each * rows, size), key, value, attn_mask=mask, scale=scaling
    )
    return out.view(1, heads, rows, value.shape[3]).transpose(1, 2).contiguous()
