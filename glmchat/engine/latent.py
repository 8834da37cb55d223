"""Attention to latents, as GLM-4.7-Flash and DeepSeek have it, without expanding those in the cache.

The cache holds one latent for each token, of which all heads' keys and values are made by one matrix.
transformers makes them anew for all tokens whenever one comes: behind 2,000 of GLM-4.7-Flash that is more
than a hundred times the arithmetic of the rest of a token. For few new tokens it is the queries that are put
through that matrix, and what comes of the latents: attention is the same sum in another order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from . import native
from .kv import both

Attend = Callable[[Any, Any, Any, float], Any]
"""What one group of keys [1, 1, m, d], which are the values as well, gives to query [1, heads, n, d], with a
mask or None and a scale: [1, n, heads, d]."""
_NAMES = ("kv_b_proj", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank", "num_heads")


def leave_latents(model: Any, attend: Attend) -> None:
    """Let the modules of `model` give latents to its attention where that knows what to do with them."""
    known: dict[type, bool] = {}
    for module in model.modules():
        if not hasattr(module, "expand_kv") or not all(hasattr(module, name) for name in _NAMES):
            continue
        if not _is_plain(module.kv_b_proj):
            continue
        # A hundredth of the weights once more.
        matrix = module.kv_b_proj.weight.detach().view(module.num_heads, -1, module.kv_lora_rank)
        nope = module.qk_nope_head_dim
        module.latent_parts = _OfHeads(matrix[:, :nope].mT), _OfHeads(matrix[:, nope:])
        if (kind := type(module)) not in known:
            known[kind] = _agrees(module, attend)
        if known[kind]:
            module.expand_latents = module.expand_kv
            module.expand_kv = _as_they_are
        else:
            del module.latent_parts


def attends_to_latents(model: Any) -> bool:
    """Whether `leave_latents` left any."""
    return any(hasattr(module, "expand_latents") for module in model.modules())


def _as_they_are(latents: Any, turned: Any) -> tuple[Any, Any]:
    return latents, turned


def takes(module: Any, rows: int) -> bool:
    """Whether so many new tokens attend to latents with less arithmetic than to what they expand to."""
    apart = module.qk_nope_head_dim + module.qk_rope_head_dim + module.v_head_dim
    more = 2 * module.kv_lora_rank + module.qk_rope_head_dim - apart
    whole = module.kv_lora_rank * (module.qk_nope_head_dim + module.v_head_dim)
    return bool(rows * more < whole)


def attend_to_latents(
    module: Any, query: Any, latents: Any, turned: Any, mask: Any, scale: float, attend: Attend
) -> Any:
    """query [1, heads, n, nope + rope], latents [1, 1, m, rank], the keys' turned part [1, 1, m, rope]:
    [1, n, heads, v]."""
    import torch

    of_keys, of_values = module.latent_parts  # from nope to rank, from rank to v
    nope, rank = module.qk_nope_head_dim, module.kv_lora_rank
    plain, turning = query[0].split([nope, query.shape[3] - nope], dim=-1)
    inner = torch.cat([of_keys.multiply(plain), turning], dim=-1)
    found = attend(inner[None], both(latents, turned), mask, scale)[0, ..., :rank]  # [n, heads, rank]
    return of_values.multiply(found.transpose(0, 1)).transpose(0, 1)[None].contiguous()


class _OfHeads:
    """A matrix [outs, ins] for each head."""

    def __init__(self, matrices: Any) -> None:
        """Of these, [heads, outs, ins]."""
        self._plain = matrices.contiguous()
        self._held = [native.pack([one]) or (one, native.find(one)) for one in self._plain]
        found = [matrix[0] for _, matrix in self._held if matrix is not None]
        self._ours = native.together(found) if len(found) == len(self._held) else None
        if self._ours is not None:
            del self._plain

    def multiply(self, x: Any) -> Any:
        """x [heads, n, ins], each by the matrix of its head: [heads, n, outs]."""
        import torch

        if self._ours is not None:
            return native.multiply_each(x, self._ours)
        # As the matrix lies: torch copies one that it gets the other way round.
        return torch.bmm(self._plain, x.mT).mT


def _is_plain(linear: Any) -> bool:
    from torch import nn

    return (
        type(linear) is nn.Linear
        and type(linear.weight) is nn.Parameter
        and linear.bias is None
        and not linear.weight.is_meta
        and linear.weight.is_floating_point()
        and linear.weight.element_size() > 1
    )


def _agrees(module: Any, attend: Attend) -> bool:
    """Whether both ways give the same for some tokens."""
    import torch

    weight = module.kv_b_proj.weight
    made = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0))
    sizes = module.kv_lora_rank, module.qk_rope_head_dim
    latents, turned = (made(1, 1, 5, size).to(weight) for size in sizes)
    query = made(1, module.num_heads, 1, module.qk_nope_head_dim + sizes[1]).to(weight)
    try:
        with torch.inference_mode():
            ours = attend_to_latents(module, query, latents, turned, None, module.scaling, attend)
            keys, values = module.expand_kv(latents, turned)
            theirs = torch.nn.functional.scaled_dot_product_attention(
                query.float(), keys.float(), values.float(), scale=module.scaling
            )
            off = (ours.transpose(1, 2).float() - theirs).norm() / theirs.norm()
            return bool(off < (1e-4 if weight.dtype == torch.float32 else 0.03))
    except Exception:  # its matrix has another order, or there is more to it
        return False
