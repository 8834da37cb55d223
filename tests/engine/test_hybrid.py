"""Experts in main memory beside a GPU: the same numbers, wherever they are computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Glm4MoeConfig

from benchmarks.gpu import SMALL
from glmchat.engine import hybrid
from glmchat.engine.local import open_local
from glmchat.engine.memory import LoadOptions
from glmchat.engine.packing import PARTS
from tests import tiny
from tests.gpu import needs_gpu

from .conformance import ask, done

DTYPES = (torch.float32, torch.bfloat16)


def experts(dtype: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Glm4MoeConfig(**SMALL), dtype=dtype)
    return hybrid.experts_of(model)["model.layers.1.mlp.experts"]


def inputs(rows: int, dtype: Any) -> tuple[Any, Any, Any]:
    x = torch.randn(rows, SMALL["hidden_size"], dtype=dtype)
    numbers = torch.stack([torch.randperm(SMALL["n_routed_experts"])[:2] for _ in range(rows)])
    return x, numbers, torch.rand(rows, 2)


@pytest.mark.parametrize("sent", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_same_as_transformers(sent: bool, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hybrid._Sender, "pays", lambda *_: sent)
    module = experts(dtype)
    wide = {part: getattr(module, part).detach().float() for part in PARTS}
    layer = hybrid._Layer(module, hybrid._Sender(torch.device("cpu")))
    for rows in (1, 16, 17, 60):
        x, numbers, weights = inputs(rows, dtype)
        expected = torch.zeros(rows, SMALL["hidden_size"])
        for row in range(rows):
            for number, weight in zip(numbers[row], weights[row], strict=True):
                gate, up = (wide["gate_up_proj"][number] @ x[row].float()).chunk(2)
                inner = torch.nn.functional.silu(gate) * up
                expected[row] += weight * (wide["down_proj"][number] @ inner)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        found = layer.forward(x, numbers, weights)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance * expected.std())


@pytest.mark.parametrize("dtype", DTYPES)
def test_matrices_are_found_again(dtype: Any) -> None:
    """However they lie in memory."""
    module = experts(dtype)
    before = [getattr(module, part).detach().clone() for part in PARTS]
    layer = hybrid._Layer(module, hybrid._Sender(torch.device("cpu")))
    assert layer._experts
    for number, expert in enumerate(layer._experts):
        for matrix, weights in zip(expert, before, strict=True):
            assert torch.equal(matrix.plain(matrix.held), weights[number])


def test_it_is_measured_what_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time to read an expert counts, and that of each row; not of the first, which is in it."""
    seconds = iter([0.5, 0.5 + 63 * 0.25, 2.0])
    monkeypatch.setattr(hybrid, "_seconds", lambda _: next(seconds))
    sender = hybrid._Sender(torch.device("cpu"))
    assert not sender.pays(1e9)
    hybrid._Layer(experts(torch.float32), sender)
    assert not sender.pays(5.9)
    assert sender.pays(6.1)


def test_quantised_experts_are_left_alone() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(Glm4MoeConfig(**SMALL), dtype=torch.bfloat16)
    assert hybrid.experts_of(model)
    model.model.layers[1].mlp.experts.to(torch.float8_e4m3fn)
    assert list(hybrid.experts_of(model)) == ["model.layers.2.mlp.experts"]
    model.config.quantization_config = {"quant_method": "fp8"}
    assert not hybrid.experts_of(model)


@needs_gpu
@pytest.mark.parametrize("sent", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_beside_a_gpu(tiny_glm: Path, sent: bool, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the GPU has no room for is experts, and the answer is the same."""
    monkeypatch.setattr(hybrid._Sender, "pays", lambda *_: sent)
    limits = "0=500KB,cpu=10MB" if dtype == "float32" else "0=250KB,cpu=10MB"
    with open_local(str(tiny_glm), LoadOptions(max_memory=limits, dtype=dtype)) as engine:
        assert engine.info.device == "cuda:0 + cpu"
        homes = engine.lend(lambda decoder, *_: placed(decoder.loaded))
        assert homes == {"experts": {"cpu"}, "all else": {"cuda"}}
        assert engine.lend(lambda decoder, *_: decoder.loaded.hybrid and not decoder.loaded.offloaded)
        for _ in range(2):  # the second has its prompt in the cache
            assert done(ask(engine, tiny.COUNT.question)).message.content == tiny.LONG + "done."


def placed(loaded: Any) -> dict[str, set[str]]:
    """The kinds of devices on which weights are."""
    homes: dict[str, set[str]] = {"experts": set(), "all else": set()}
    for name, weight in loaded._model.named_parameters():
        homes["experts" if ".experts." in name else "all else"].add(weight.device.type)
    return homes
