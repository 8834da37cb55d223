"""Packed weights give the numbers that they gave before, and stay the parameters they were.

Where oneDNN has no products in BF16 our kernels read them as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, conversion_mapping

from glmchat.engine import native, packing
from glmchat.engine.experts import experts_packed
from glmchat.engine.local import open_local
from glmchat.engine.memory import LoadOptions
from glmchat.engine.packing import can_pack, is_packed, pack, use_packed_experts
from glmchat.glm.checkpoints import resolve

DEMO = resolve("demo").folder


def plain(folder: Path = DEMO, dtype: str = "bfloat16") -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@pytest.fixture(autouse=True)
def only_where_it_is_done() -> None:
    if not can_pack(plain()):
        pytest.skip("neither oneDNN nor a kernel of ours multiplies BF16 on this CPU")


@pytest.fixture(params=["loaded", "as it is loaded"])
def packed(request: pytest.FixtureRequest) -> Any:
    if request.param == "loaded":
        model = plain()
    else:
        with experts_packed("glm4_moe"):
            model = plain()
        experts = model.model.layers[1].mlp.experts
        assert experts.gate_up_proj.untyped_storage().nbytes() == 2, "it stands for those that are apart"
    assert len(list(pack(model))) > 40
    use_packed_experts(model)
    return model


@torch.inference_mode()
def test_the_same_logits(packed: Any) -> None:
    """Within a last bit here and there; where torch adds in another order, as near to what FP32 gives."""
    models = (plain(), packed, plain(dtype="float32"))
    caches = [DynamicCache(config=packed.config) for _ in models]
    generator = torch.Generator().manual_seed(0)
    theirs, ours = [], []
    for rows in (40, 1, 1, 2, 7, 1, 300):
        ids = torch.randint(packed.config.vocab_size, (1, rows), generator=generator)
        usual, now, exact = (
            m(input_ids=ids, past_key_values=c).logits.float() for m, c in zip(models, caches, strict=True)
        )
        if native.packs():
            assert float((usual - now).norm() / usual.norm()) < 1e-3  # 0 on the CPUs that were tried
        theirs.append(float((usual - exact).norm() / exact.norm()))
        ours.append(float((now - exact).norm() / exact.norm()))
    assert sum(ours) < 1.1 * sum(theirs)


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(64, 96), (2048, 2176)])
@pytest.mark.parametrize("biased", [False, True])
def test_rows_computed_in_vain_change_nothing(shape: tuple[int, int], biased: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(*reversed(shape), bias=biased, dtype=torch.bfloat16)
    usual = layer.weight.detach().clone()
    list(pack(torch.nn.Sequential(layer)))
    assert is_packed(layer)
    for rows in (1, 2, 3, 4, 15, 17, 20, 33, 70, 200):
        x = torch.randn(1, rows, shape[1], generator=generator).bfloat16()
        out = layer(x)
        assert out.shape == (1, rows, shape[0])
        assert out.is_contiguous()
        torch.testing.assert_close(out, torch.nn.functional.linear(x, usual, layer.bias))


def test_products_have_few_numbers_of_rows() -> None:
    rooms = [packing._rounded(rows) for rows in range(1, 513)]
    assert len(set(rooms)) < 60
    for rows, room in enumerate(rooms, 1):
        assert rows <= room < rows + max(4, rows / 8)


def test_parameters_keep_their_sizes(packed: Any) -> None:
    usual = plain()
    for count in (lambda t: t.numel(), lambda t: t.nbytes):
        assert sum(map(count, packed.parameters())) == sum(map(count, usual.parameters()))
    names = {name.rstrip(".0123456789") for name, _ in packed.named_parameters()}
    assert names == {name for name, _ in usual.named_parameters()}


def test_an_embedding_that_is_lm_head_too_is_left(tmp_path: Path) -> None:
    model = plain()
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    list(pack(model))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, plain().model.embed_tokens.weight)
    assert is_packed(model.model.layers[0].self_attn.q_proj)


def test_what_is_not_packed() -> None:
    assert not can_pack(plain(dtype="float32"))
    biased = plain()
    for module in biased.modules():
        if hasattr(module, "_apply_gate"):
            module.has_bias = True
    list(pack(biased))
    use_packed_experts(biased)
    assert biased.config._experts_implementation == "grouped_mm"
    assert biased.model.layers[1].mlp.experts.gate_up_proj.ndim == 3


def test_the_engine_packs_what_it_loads() -> None:
    with open_local("demo", LoadOptions(device_map="cpu")) as engine:
        weights = engine.lend(lambda decoder, *_: decoder.loaded.weights())
        assert sum(hasattr(t, "native") for t in weights) > 40
        mtp = engine.lend(lambda decoder, *_: decoder.loaded.mtp)
        assert mtp is not None
        assert is_packed(mtp.layer["eh_proj"])
        assert engine.info.parameters == sum(t.numel() for t in plain().parameters())
    with open_local("demo", LoadOptions(device_map="cpu", dtype="float32")) as engine:
        weights = engine.lend(lambda decoder, *_: decoder.loaded.weights())
        assert not any(t.is_mkldnn or hasattr(t, "native") for t in weights)


def numbers(weight: Any) -> Any:
    """[outs, ins], however it is kept."""
    if getattr(weight, "held", None) is not None:
        return native.plain(weight.held, *weight.shape, weight.native[0].block)
    return weight.to_dense() if weight.is_mkldnn else weight


class TestLoadedPacked:
    def test_the_same_weights(self) -> None:
        with experts_packed("glm4_moe"):
            apart = plain()
        for _ in pack(apart):
            pass
        usual = plain()
        for _ in pack(usual):
            pass
        plainly = [expert for t in plain().parameters() for expert in (t if t.ndim == 3 else [t])]
        for ours, theirs, exact in zip(apart.parameters(), usual.parameters(), plainly, strict=True):
            assert ours.shape == theirs.shape == exact.shape
            assert torch.equal(numbers(ours), exact)
            assert torch.equal(*map(numbers, (ours, theirs)))

    def test_what_cannot_be_packed_is_loaded_as_ever(self) -> None:
        with experts_packed("glm4_moe"):
            exact = plain(dtype="float32")
        for ours, theirs in zip(exact.parameters(), plain(dtype="float32").parameters(), strict=True):
            assert torch.equal(ours, theirs)

    def test_transformers_is_as_before(self) -> None:
        def steps() -> set[str]:
            mapping = conversion_mapping.get_checkpoint_conversion_mapping("glm4_moe")
            return {type(step).__name__ for entry in mapping for step in entry.operations}

        usual = steps()
        with experts_packed("glm4_moe"):
            assert steps() == {"PackApart"}
        assert steps() == usual == {"MergeModulelist", "Concatenate"}
        assert "glm4_moe" not in conversion_mapping.USER_REGISTERED_MAPPINGS
        with experts_packed("llama"), experts_packed("no such model"):
            assert not conversion_mapping.USER_REGISTERED_MAPPINGS
