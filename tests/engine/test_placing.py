"""Device maps that put experts into main memory: all that fits on the GPU is there, and nothing twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Glm4MoeConfig, LlamaConfig

from benchmarks.checkpoint import FLASH_LAYERS
from benchmarks.gpu import AIR
from glmchat.engine import placing
from glmchat.engine.memory import LoadOptions
from glmchat.engine.placing import place, plan_experts

GIB = 1 << 30
LIMITS: dict[int | str, int] = {0: 76 * GIB, "cpu": 160 * GIB}


@pytest.fixture(scope="module")
def air() -> Any:
    """GLM-4.5-Air without weights: 199 GiB, of which a layer's experts are 4.1."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(Glm4MoeConfig(**AIR), dtype=torch.bfloat16)


def sizes(model: Any, placed: dict[str, int | str]) -> dict[int | str, int]:
    """Bytes on each device; each weight and buffer has one."""
    found: dict[int | str, int] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        parents = [name[:end] for end, c in enumerate(f"{name}.") if c == "."]
        (device,) = [placed[parent] for parent in parents if parent in placed]
        assert device == 0 or ".experts." in name
        found[device] = found.get(device, 0) + tensor.nbytes
    return found


def test_experts_go_to_main_memory(air: Any) -> None:
    placed = plan_experts(air, LIMITS, chosen=False)
    assert placed is not None
    found = sizes(air, placed)
    assert 58 * GIB < found[0] < 0.92 * LIMITS[0] - 5 * GIB, "room is left for the KV cache of 32k tokens"
    assert found["cpu"] > 130 * GIB
    on_cpu = [name for name, device in placed.items() if device == "cpu"]
    assert on_cpu == [f"model.layers.{n}.mlp.experts" for n in range(46 - len(on_cpu), 46)]


def test_what_a_person_allows_is_for_weights(air: Any) -> None:
    placed = plan_experts(air, LIMITS, chosen=True)
    assert placed is not None
    assert 0 <= LIMITS[0] - sizes(air, placed)[0] < 4.2 * GIB, "as many layers' experts as fit"


def test_a_small_gpu_holds_all_but_experts(air: Any) -> None:
    placed = plan_experts(air, {0: 24 * GIB, "cpu": 256 * GIB}, chosen=False)
    assert placed is not None
    assert sizes(air, placed)[0] < 16.4 * GIB


def test_transformers_reads_the_map_alike(air: Any) -> None:
    from transformers.integrations.accelerate import expand_device_map

    placed = plan_experts(air, LIMITS, chosen=False)
    assert placed is not None
    names = [name for name, _ in air.named_parameters()]
    theirs = expand_device_map(placed, names)
    on_cpu = tuple(f"{name}." for name, device in placed.items() if device == "cpu")
    assert theirs == {name: "cpu" if name.startswith(on_cpu) else 0 for name in names}


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ({0: 250 * GIB, "cpu": 160 * GIB}, "it fits"),
        ({0: 12 * GIB, "cpu": 256 * GIB}, "there is no room for all else"),
        ({0: 76 * GIB, "cpu": 100 * GIB}, "there is no room for the experts"),
        ({0: 76 * GIB}, "main memory is not to be used"),
        ({0: 76 * GIB, 1: 76 * GIB, "cpu": 160 * GIB}, "there are two"),
        ({"cpu": 256 * GIB}, "there is none"),
    ],
)
def test_where_there_is_nothing_to_plan(air: Any, limits: dict[int | str, int], why: str) -> None:
    assert plan_experts(air, limits, chosen=False) is None, why


def test_weights_that_will_be_of_other_sizes(air: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(air.config, "quantization_config", {"quant_method": "fp8"}, raising=False)
    assert plan_experts(air, LIMITS, chosen=False) is None


def test_a_model_without_experts() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(num_hidden_layers=4), dtype=torch.bfloat16)
    assert plan_experts(model, {0: GIB, "cpu": 160 * GIB}, chosen=False) is None


class TestPlace:
    @pytest.fixture(autouse=True)
    def one_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As far as is asked, of half a megabyte."""
        for name in ("cuda", "accelerator"):
            monkeypatch.setattr(getattr(torch, name), "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (500_000, 500_000))
        monkeypatch.setattr("accelerate.utils.get_max_memory", lambda _: {0: 500_000, "cpu": GIB})
        monkeypatch.setattr(placing, "_CONTEXT", 16)

    def place(self, folder: Path, **options: Any) -> Any:
        device_map, _ = place(folder, AutoConfig.from_pretrained(folder), LoadOptions(**options))
        return device_map

    def test_experts_are_planned_for(self, tiny_glm: Path) -> None:
        placed = self.place(tiny_glm)
        assert placed["model.layers.1.mlp.experts"] == "cpu"
        assert placed["lm_head"] == 0

    def test_only_for_auto(self, tiny_glm: Path) -> None:
        assert self.place(tiny_glm, device_map="sequential") == "sequential"
        assert self.place(tiny_glm, device_map="cpu") == {"": "cpu"}

    def test_not_where_it_fits_in_any_case(self, tiny_glm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (GIB, GIB))
        assert self.place(tiny_glm) == "auto"

    def test_a_model_that_cannot_be_made_is_left_to_transformers(
        self, tiny_glm: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(AutoModelForCausalLM, "from_config", lambda *_, **__: 1 / 0)
        assert self.place(tiny_glm) == "auto"


def test_a_cache_of_latents_is_small() -> None:
    """GLM-4.7-Flash's, of 32,768 tokens: 1.65 GiB, where all heads' keys and values would be 29."""
    config = AutoConfig.for_model(
        "glm4_moe_lite", **{**FLASH_LAYERS, "num_hidden_layers": 47, "max_position_embeddings": 200_000}
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    assert placing._cache_bytes(model) == 47 * (512 + 64) * 2 * 32768
