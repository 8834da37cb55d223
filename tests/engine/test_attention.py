"""Attention on a CPU: what is grouped, and the kernel of our own, against torch's."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import pytest
import torch

from glmchat.engine import attention, native
from glmchat.engine.local import LocalEngine, open_local
from glmchat.engine.memory import LoadOptions
from tests.gpu import needs_gpu

SHAPES = [(16, 4, 64), (96, 8, 128), (9, 3, 64), (6, 2, 32), (4, 4, 96), (2, 1, 256), (20, 1, 576)]
"""Query heads, heads of keys, size."""


def llama_attention() -> Any:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaAttention

    attention._register()
    return LlamaAttention(LlamaConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2), 0)


def by_name(name: str, *tensors: Any, **more: Any) -> Any:
    from transformers import AttentionInterface

    module = llama_attention()
    return AttentionInterface()[name](module, *tensors, **more)[0]


@pytest.mark.parametrize("rows", [1, 2, 17, 50])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", [attention.GROUPED, attention.NATIVE])
def test_attention_to_a_long_cache_is_that_of_torch(rows: int, masked: bool, name: str) -> None:
    torch.manual_seed(0)
    query, key, value = torch.rand(1, 4, rows, 16), torch.rand(1, 2, 50, 16), torch.rand(1, 2, 50, 16)
    mask = torch.ones(rows, 50, dtype=torch.bool).tril(50 - rows)[None, None] if masked else None
    if rows > 1 and not masked:
        key, value = key[:, :, :rows], value[:, :, :rows]
    ours, theirs = (
        by_name(kind, query, key, value, mask, scaling=0.3, is_causal=True) for kind in (name, "sdpa")
    )
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("name", [attention.GROUPED, attention.NATIVE])
def test_what_only_torchs_path_knows_goes_to_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import sdpa_attention

    theirs, told = sdpa_attention.sdpa_attention_forward, []

    def spy(*tensors: Any, **more: Any) -> Any:
        told.append(more)
        return theirs(*tensors, **more)

    monkeypatch.setattr(sdpa_attention, "sdpa_attention_forward", spy)
    query, key = torch.rand(1, 4, 1, 64).bfloat16(), torch.rand(1, 2, 50, 64).bfloat16()
    with contextlib.suppress(ValueError):  # newer ones refuse it
        by_name(name, query, key, key, None, softcap=30.0)
    assert [more["softcap"] for more in told] == [30.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [attention.NATIVE, attention.CAUSAL])
def test_no_mask_for_the_last_of_all_tokens_is_a_causal_one(name: str, dtype: Any) -> None:
    """As `_mask_or_causal` leaves it out; what no kernel takes goes to torch, with the mask made up."""
    torch.manual_seed(0)
    query, key, value = (torch.rand(1, n, m, 64).to(dtype) for n, m in ((4, 5), (2, 50), (2, 50)))
    mask = torch.ones(5, 50, dtype=torch.bool).tril(45)[None, None]
    ours = by_name(name, query, key, value, None, scaling=0.3)
    theirs = by_name(attention.GROUPED, query, key, value, mask, scaling=0.3)
    assert torch.allclose(ours, theirs, atol=1e-6 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("name", [attention.NATIVE, attention.CAUSAL])
@pytest.mark.parametrize("length", [9, 15])
def test_what_is_not_causal_goes_to_torch(name: str, length: int) -> None:
    """No mask then means that all attend to all."""
    from transformers import AttentionInterface

    module = llama_attention()
    module.is_causal = False
    query, key = torch.rand(1, 4, 9, 64).bfloat16(), torch.rand(1, 2, length, 64).bfloat16()
    ours, theirs = (
        AttentionInterface()[kind](module, query, key, key, None, scaling=0.3)[0] for kind in (name, "sdpa")
    )
    assert torch.equal(ours, theirs)


@needs_gpu
@pytest.mark.parametrize("shape", SHAPES)
def test_a_later_chunk_on_a_gpu(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's flash kernel; no mask is made."""
    from transformers import AttentionInterface

    query, key, value = (t.to("cuda") for t in tensors(shape, 100, 300))
    scale = shape[2] ** -0.5
    module = llama_attention()
    module.num_key_value_groups = shape[0] // shape[1]
    mask = attention._lower_right(query, 300)
    monkeypatch.setattr(attention, "_lower_right", None)
    ours, theirs = (
        AttentionInterface()[kind](module, query, key, value, given, scaling=scale)[0].float()
        for kind, given in ((attention.CAUSAL, None), ("sdpa", mask))
    )
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-2


ASKED = {"batch_size": 1, "q_length": 3, "kv_length": 10, "q_offset": 7, "kv_offset": 0}


@pytest.mark.parametrize(
    "other",
    [
        {"allow_is_causal_skip": False},
        {"attention_mask": torch.tensor([[False] + [True] * 9])},
        {"local_size": 4},
        {"batch_size": 2},
        {"q_offset": 6},
        {"q_offset": torch.tensor(7)},
        {"kv_length": 12},
    ],
)
def test_only_a_plain_causal_mask_is_left_out(other: dict[str, Any]) -> None:
    from transformers.masking_utils import sdpa_mask

    assert attention._mask_or_causal(**ASKED) is None
    mask = attention._mask_or_causal(**(ASKED | other))
    assert torch.equal(mask, sdpa_mask(**(ASKED | other)))


def assert_is_attention(query: Any, key: Any, value: Any, scale: float) -> None:
    """Of the kernel: no further from FP32 than by weights and results rounded to eight bits."""
    ours = native.attend(query, key, value, scale)
    rows, length, each = query.shape[2], key.shape[2], query.shape[1] // key.shape[1]
    key, value = (t.float().repeat_interleave(each, dim=1) for t in (key, value))
    scores = query.float() @ key.transpose(2, 3) * scale
    seen = torch.ones(rows, length, dtype=torch.bool).tril(length - rows)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    theirs, rounded = ((weights @ v).transpose(1, 2) for v in (value, value.abs()))
    assert ours.dtype == torch.bfloat16
    assert ours.is_contiguous()
    assert bool(((ours.float() - theirs).abs() <= 2**-8 * (theirs.abs() + rounded)).all())


def tensors(shape: tuple[int, int, int], rows: int, length: int, *, seed: int = 0) -> tuple[Any, Any, Any]:
    """As a model has them: heads are neighbours in a query, a cache has room behind what is used of it."""
    heads, groups, size = shape
    random = torch.Generator().manual_seed(seed)
    query = torch.randn(1, rows, heads, size, generator=random).bfloat16().transpose(1, 2)
    room = torch.full((2, 1, groups, length + 70, size), float("nan")).bfloat16()
    room[..., :length, :] = torch.randn(2, 1, groups, length, size, generator=random).bfloat16()
    return query, room[0][:, :, :length], room[1][:, :, :length]


@pytest.mark.usefixtures("kernels")
class TestKernel:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("rows", [1, 2, 5, 21, 100])
    @pytest.mark.parametrize("before", [0, 1, 63, 64, 1000])
    def test_is_attention(self, shape: tuple[int, int, int], rows: int, before: int) -> None:
        query, key, value = tensors(shape, rows, before + rows)
        assert native.takes(query, key, value)
        assert_is_attention(query, key, value, 0.11)

    @pytest.mark.parametrize("length", range(1, 131))
    def test_any_length(self, length: int) -> None:
        for rows in {1, (length + 1) // 2, length}:
            query, key, value = tensors((4, 2, 32), rows, length)
            assert_is_attention(query, key, value, 0.2)

    def test_any_number_of_threads(self) -> None:
        """With many, keys are shared out among them, and the parts put together; it makes no difference."""
        before = torch.get_num_threads()
        for rows, length in itertools.product((1, 30, 150), (511, 1024, 1025, 5000)):
            query, key, value = tensors((6, 2, 64), rows, length)
            assert_is_attention(query, key, value, 0.125)
            usual = native.attend(query, key, value, 0.125)
            try:
                for threads in (1, 2, 3, 8):
                    torch.set_num_threads(threads)
                    assert torch.equal(native.attend(query, key, value, 0.125), usual)
            finally:
                torch.set_num_threads(before)

    @pytest.mark.parametrize("scale", [1e-3, 4.0, 1000.0])
    @pytest.mark.parametrize("order", [1, -1])
    def test_scores_near_and_far_from_each_other(self, scale: float, order: int) -> None:
        """Rising along the keys, so that the maximum grows with every block, and falling."""
        query, key, value = tensors((4, 2, 64), 20, 3000)
        query = torch.ones_like(query)
        rising = torch.linspace(-3, 3, 3000) * order
        key.copy_(rising[:, None].expand(3000, 64).bfloat16())
        assert_is_attention(query, key, value, scale)

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("some", [1, 2, 3, 4, 7])
    def test_a_row_is_the_same_beside_few_others_as_beside_many(
        self, shape: tuple[int, int, int], some: int
    ) -> None:
        """So that guesses are checked by the numbers that the token alone would have had."""
        query, key, value = tensors(shape, 40, 1050)
        together = native.attend(query, key, value, 0.125)
        for end in (some, 17, 40):
            seen = 1050 - 40 + end
            rows = query[:, :, end - some : end]
            few = native.attend(rows, key[:, :, :seen], value[:, :, :seen], 0.125)
            assert torch.equal(few, together[:, end - some : end])

    def test_takes_only_what_it_reads_right(self) -> None:
        query, key, value = tensors((4, 2, 64), 1, 10)
        assert native.takes(query, key, value)
        assert not native.takes(query, key.float(), value)
        assert not native.takes(query, key, value.transpose(2, 3).contiguous().transpose(2, 3))
        assert not native.attends(torch.float32, 64)
        assert not native.attends(torch.bfloat16, 80)
        assert not native.attends(torch.bfloat16, 608)

    def test_the_bundled_model_is_as_near_to_fp32_as_with_torchs(self) -> None:
        ids = torch.arange(100, 600)[None]
        logits = {}
        for dtype, attn in (("float32", "sdpa"), ("bfloat16", "sdpa"), ("bfloat16", "")):
            options = LoadOptions(device_map="cpu", dtype=dtype, attn=attn)
            with open_local("demo", options) as engine, torch.inference_mode():
                used = implementation(engine)
                logits[dtype, used] = engine._runner._loaded._model(ids).logits.float()  # type: ignore
        exact = logits.pop(("float32", "sdpa"))
        errors = {used: float((found - exact).abs().mean()) for (_, used), found in logits.items()}
        assert errors[attention.NATIVE] < 1.2 * errors["sdpa"]


def implementation(engine: LocalEngine) -> str:
    assert engine._runner is not None
    return str(engine._runner._loaded._model.config._attn_implementation)


def test_a_model_on_the_cpu_attends_in_our_way(tiny_glm: Any) -> None:
    with open_local(str(tiny_glm), LoadOptions(device_map="cpu")) as engine:
        assert implementation(engine) == attention.GROUPED  # it is FP32
