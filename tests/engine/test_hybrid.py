"""Experts in main memory beside a GPU: the same numbers, wherever they are computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, Glm4MoeConfig

from benchmarks.gpu import SMALL
from glmchat.engine import hybrid
from glmchat.engine.kv import growing, whole
from glmchat.engine.local import open_local
from glmchat.engine.memory import LoadOptions
from glmchat.engine.packing import PARTS
from glmchat.engine.step import Step
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
    assert layer.experts
    for number, expert in enumerate(layer.experts):
        for matrix, weights in zip(expert, before, strict=True):
            assert torch.equal(matrix.plain(matrix.held), weights[number])


def test_it_is_measured_what_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first row of an expert takes as long as to read it; sending one takes as long for many rows."""
    now = 0.0

    def here(x: Any, *_: Any) -> Any:
        nonlocal now
        now += 0.5 + (len(x) / SMALL["n_routed_experts"] - 1) * 0.25
        return x

    def there(_: Any, x: Any, *__: Any) -> Any:
        nonlocal now
        now += 2.0
        return x

    monkeypatch.setattr(hybrid.time, "perf_counter", lambda: now)
    monkeypatch.setattr(hybrid, "use_fused", lambda module: setattr(module, "forward", here))
    monkeypatch.setattr(hybrid._Layer, "_there", there)
    sender = hybrid._Sender(torch.device("cpu"))
    assert not sender.pays(1e9)
    hybrid._Layer(experts(torch.float32), sender)
    assert not sender.pays(6.9)
    assert sender.pays(7.1)


def test_quantised_experts_are_left_alone() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(Glm4MoeConfig(**SMALL), dtype=torch.bfloat16)
    assert hybrid.experts_of(model)
    model.model.layers[1].mlp.experts.to(torch.float8_e4m3fn)
    assert list(hybrid.experts_of(model)) == ["model.layers.2.mlp.experts"]


@torch.inference_mode()
def test_a_step_stops_where_they_are_computed() -> None:
    """What is compiled and recorded is all else of a layer; in pieces, it is the same step."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Glm4MoeConfig(**SMALL), dtype=torch.float32).eval()
    apart = hybrid.experts_of(model)["model.layers.2.mlp.experts"]
    layer = hybrid._Layer(apart, hybrid._Sender(torch.device("cpu")))
    apart.forward = layer.forward
    cache = growing(DynamicCache(config=model.config))
    expected = model(torch.arange(8)[None], past_key_values=cache, logits_to_keep=3).logits[0]
    cache.crop(-3)
    pieces = Step(model).pieces(torch.arange(5, 8)[None], torch.tensor([5]), whole(cache, 8))
    compute, given = next(pieces)
    assert compute == layer.forward, "a copy of the model has no copy of the experts"
    with pytest.raises(StopIteration) as ended:
        pieces.send(compute(*given))
    logits, states = ended.value.value
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert states.shape == (1, 3, SMALL["hidden_size"])


@needs_gpu
@pytest.mark.parametrize("compile", ["on", "off"])
@pytest.mark.parametrize("sent", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_beside_a_gpu(
    tiny_glm: Path, sent: bool, dtype: str, compile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the GPU has no room for is experts, and the answer is the same."""
    monkeypatch.setattr(hybrid._Sender, "pays", lambda *_: sent)
    limits = "0=500KB,cpu=10MB" if dtype == "float32" else "0=250KB,cpu=10MB"
    options = LoadOptions(max_memory=limits, dtype=dtype, compile=compile)
    with open_local(str(tiny_glm), options) as engine:
        assert engine.info.device == "cuda:0 + cpu"
        homes = engine.lend(lambda decoder, *_: placed(decoder.loaded))
        assert homes == {"experts": {"cpu"}, "all else": {"cuda"}}
        assert engine.lend(lambda decoder, *_: decoder.loaded.hybrid and not decoder.loaded.offloaded)
        for _ in range(2):  # the second has its prompt in the cache, and experts are pinned
            assert done(ask(engine, tiny.COUNT.question)).message.content == tiny.LONG + "done."
            while engine.lend(lambda decoder, *_: decoder.loaded.page_more()):
                pass
        if sent:
            engine.lend(lambda decoder, *_: decoder.prefixes.drop())
            assert done(ask(engine, tiny.COUNT.question)).message.content == tiny.LONG + "done."
        step = engine.lend(lambda decoder, *_: decoder.loaded.compiled)
        if compile == "on":
            ((_, recording),) = step._run._recordings.values()
            assert len(recording.between) == 1, "a layer's experts are computed between two recordings"


def placed(loaded: Any) -> dict[str, set[str]]:
    """The kinds of devices on which weights are."""
    homes: dict[str, set[str]] = {"experts": set(), "all else": set()}
    for name, weight in loaded._model.named_parameters():
        homes["experts" if ".experts." in name else "all else"].add(weight.device.type)
    return homes
