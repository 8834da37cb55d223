"""Muon for the matrices, AdamW for the rest, both on FP32 masters of the weights.

Muon (Keller Jordan, 2024) replaces a matrix's momentum by its nearest orthogonal matrix, found by a few
Newton-Schulz steps; a small transformer learns from about half the tokens that AdamW needs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """The orthogonal matrix near `matrix` (…, rows, columns), computed in the dtype of `matrix`."""
    a, b, c = _NEWTON_SCHULZ
    x = matrix
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


class MixedOptimizer:
    """Steps both optimizers by gradients of the weights; `scale` multiplies all learning rates."""

    def __init__(self, model: nn.Module, *, muon_lr: float, adam_lr: float, decay: float = 0.02) -> None:
        self._pairs = [(p, p.detach().float().clone()) for p in model.parameters()]
        named = dict(model.named_parameters())
        is_matrix = {
            id(p): p.ndim >= 2 and not any(s in n for s in ("embed_tokens", "lm_head", "mlp.gate.weight"))
            for n, p in named.items()
        }
        self._muon = [(p, m) for p, m in self._pairs if is_matrix[id(p)]]
        self._momentum = [torch.zeros_like(m) for _, m in self._muon]
        rest = [m for p, m in self._pairs if not is_matrix[id(p)]]
        self._adam = torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
        self._muon_lr, self._adam_lr, self._decay = muon_lr, adam_lr, decay

    @torch.no_grad()
    def step(self, scale: float) -> None:
        for weight, master in self._pairs:
            master.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None
        for group in self._adam.param_groups:
            group["lr"] = self._adam_lr * scale
        self._adam.step()
        lr = self._muon_lr * scale
        for (weight, master), momentum in zip(self._muon, self._momentum, strict=True):
            if master.grad is None:
                continue
            momentum.lerp_(master.grad, 0.05)
            update = orthogonalised(master.grad.lerp(momentum, 0.95).to(weight.dtype))
            rows, columns = master.shape[-2:]
            master.mul_(1 - lr * self._decay)
            master.add_(update, alpha=-lr * max(1.0, rows / columns) ** 0.5)
        for weight, master in self._pairs:
            weight.copy_(master)
