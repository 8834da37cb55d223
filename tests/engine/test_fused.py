"""Fused kernels round as torch does, and take the place of that alone which computes what they do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.models.glm4_moe.modeling_glm4_moe import apply_rotary_pos_emb

from glmchat.engine import fused, native
from glmchat.engine.attention import use_own_attention
from glmchat.engine.local import open_local
from glmchat.engine.memory import LoadOptions
from glmchat.engine.packing import pack, use_packed_experts
from glmchat.glm.checkpoints import resolve

DEMO = resolve("demo").folder
SIZES = [1, 15, 16, 64, 100, 4096]

pytestmark = pytest.mark.usefixtures("kernels")


def random(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def is_rounded(ours: Any, exact: Any, times: int = 1) -> bool:
    """Whether it is no further from the exact number than by so many roundings to eight bits."""
    exact = exact.double()
    return bool(((ours.double() - exact).abs() <= times * 2**-8 * exact.abs() + 1e-30).all())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", [1, 3, 700])
def test_norm(size: int, rows: int) -> None:
    x, weight = random(rows, size), random(size, seed=1)
    exact = weight.double() * x.double() * torch.rsqrt(x.double().pow(2).mean(-1, keepdim=True) + 1e-5)
    assert is_rounded(native.norm(x, weight, 1e-5), exact, times=2)
    assert torch.equal(native.norm(x.T.contiguous().T, weight, 1e-5), native.norm(x, weight, 1e-5))


@pytest.mark.parametrize(("size", "turned"), [(32, 16), (64, 64), (128, 64), (96, 20)])
@pytest.mark.parametrize("rows", [1, 3, 300])
def test_rotate(size: int, turned: int, rows: int) -> None:
    """Rounded where transformers rounds, so it is the same."""
    query, key = random(1, rows, 5, size), random(1, rows, 2, size, seed=1)
    angles = torch.linspace(0, 50, rows * turned // 2).view(1, rows, -1)
    cos, sin = (torch.cat([t, t], dim=-1).bfloat16() for t in (angles.cos(), angles.sin()))
    usual = apply_rotary_pos_emb(query, key, cos, sin, unsqueeze_dim=2)
    native.rotate(query, key, cos, sin)
    assert torch.equal(query, usual[0])
    assert torch.equal(key, usual[1])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", [1, 3, 700])
def test_gate(size: int, rows: int) -> None:
    both = random(rows, 2 * size) * 8
    gates, ups = both.chunk(2, dim=-1)
    exact = torch.nn.functional.silu(gates.double()) * ups.double()
    assert is_rounded(native.gate(gates, ups), exact, times=2)
    assert torch.equal(native.gate(gates.contiguous(), ups.contiguous()), native.gate(gates, ups))


def test_gate_far_from_zero() -> None:
    x = torch.tensor([[-3e38, -1000.0, -90.0, -0.0, 0.0, 90.0, 1000.0, 3e38]]).bfloat16()
    ours = native.gate(x, torch.ones_like(x))
    torch.testing.assert_close(ours, torch.nn.functional.silu(x), rtol=0, atol=1e-30)
    assert native.gate(x * torch.nan, x).isnan().all()


@pytest.mark.parametrize("experts", [2, 16, 30, 160])
@pytest.mark.parametrize("shared", [False, True])
def test_choose(experts: int, shared: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, bias = (torch.randn(n, experts, generator=generator) for n in (300, 1))
    each = min(experts, 8)
    weights, numbers = native.choose(logits, bias[0], each, shared=shared, scale=2.5)
    scores = logits.sigmoid()
    chosen = (scores + bias).topk(each).indices
    assert torch.equal(numbers.sort().values, chosen.sort().values)
    expected = scores.gather(1, numbers)
    torch.testing.assert_close(weights, 2.5 * expected / (expected.sum(1, keepdim=True) if shared else 1))


def test_choose_of_what_is_no_number() -> None:
    """A broken model must not read weights that there are not."""
    _, numbers = native.choose(torch.full((2, 16), torch.nan), torch.zeros(16), 4, shared=True, scale=1.0)
    assert numbers.tolist() == [[0, 1, 2, 3]] * 2


def replaced(module: Any) -> bool:
    return getattr(module.__dict__.get("forward"), "__module__", "") == fused.__name__


class Norm(nn.Module):
    """With weights around 0, as Gemma has them."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(random(64, seed=1), requires_grad=False)
        self.variance_epsilon, self._shift = 1e-5, shift

    def forward(self, x: Any) -> Any:
        wide = x.float()
        even = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (self._shift + self.weight) * even.to(x.dtype)


class Mlp(nn.Module):
    def __init__(self, act: Any) -> None:
        super().__init__()
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(self, name, nn.Linear(64, 64, dtype=torch.bfloat16))
        self._act = act

    def forward(self, x: Any) -> Any:
        return self.down_proj(self._act(self.gate_proj(x)) * self.up_proj(x))


@pytest.mark.parametrize(
    ("module", "takes"),
    [
        (Norm(0.0), True),
        (Norm(1.0), False),
        (Norm(0.0).float(), False),
        (Mlp(nn.functional.silu), True),
        (Mlp(nn.functional.gelu), False),
    ],
)
def test_only_what_computes_the_same_is_replaced(module: Any, takes: bool) -> None:
    x = random(2, 64, seed=5)
    if module.__class__ is Norm and module.weight.dtype == torch.float32:
        x = x.float()
    with torch.inference_mode():
        before = module(x)
        fused.use_fused(module)
        assert replaced(module) is takes
        torch.testing.assert_close(module(x), before)
        if isinstance(module, Norm):
            assert module(x.float()).dtype == torch.promote_types(torch.float32, module.weight.dtype)


@torch.inference_mode()
@pytest.mark.parametrize("groups", [1, 2])
def test_a_whole_model(kernels: str, groups: int) -> None:
    """Experts in several groups are chosen in another way.

    A norm's root is not torch's to the last bit, which now and then rounds a number otherwise, and does so
    here for the builds that widen to FP32: both are as near to what that gives.
    """
    config = AutoConfig.from_pretrained(DEMO, n_group=groups)
    usual, ours = (
        AutoModelForCausalLM.from_pretrained(DEMO, config=config, dtype="bfloat16").eval() for _ in range(2)
    )
    for model in (usual, ours):
        use_own_attention(model)
    same = [ours]
    if not native.packs() or (kernels == native.BF16 and native.cpu_has(native.AMX)):
        same.append(usual)  # torch adds in another order, by AMX or where oneDNN has no products in BF16
    for model in same:
        for _ in pack(model):
            pass
        use_packed_experts(model)
    fused.use_fused(ours)
    kinds = {type(m).__name__ for m in ours.modules() if replaced(m)}
    routers = {"Glm4MoeTopkRouter"} if groups == 1 else set()
    always = ("RMSNorm", "Attention", "MLP", "Experts", "DecoderLayer")
    assert kinds == {f"Glm4Moe{name}" for name in always} | routers
    exact = AutoModelForCausalLM.from_pretrained(DEMO, config=config, dtype="float32").eval()
    models = (usual, ours, exact)
    caches = [DynamicCache(config=config) for _ in models]
    errors = torch.zeros(2)
    for rows in (40, 1, 3):
        ids = torch.arange(100, 100 + rows)[None]
        a, b, c = (
            m(input_ids=ids, past_key_values=c).logits.float() for m, c in zip(models, caches, strict=True)
        )
        if native.packs():
            assert float((a - b).norm() / a.norm()) < 1e-3  # 0 on the CPUs that were tried
        errors += torch.stack([(a - c).norm(), (b - c).norm()]) / c.norm()
    assert errors[1] < 1.1 * errors[0]


def test_the_engine_uses_them() -> None:
    with open_local("demo", LoadOptions(device_map="cpu")) as engine:
        trunk, head = engine.lend(lambda decoder, *_: (decoder.loaded._model, decoder.loaded.mtp))
        assert head is not None
        for modules in (trunk.modules(), head.layer.modules()):
            assert sum(map(replaced, modules)) >= 5
    with open_local("demo", LoadOptions(device_map="cpu", dtype="float32")) as engine:
        assert not any(map(replaced, engine.lend(lambda decoder, *_: decoder.loaded._model.modules())))
