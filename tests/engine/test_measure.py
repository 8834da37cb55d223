"""What is measured of a model: not how fast it is, but that the numbers are what they say."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from glmchat.engine.bandwidth import read_bandwidth
from glmchat.engine.local import LocalEngine, open_local
from glmchat.engine.measure import choose_lengths, measure
from glmchat.engine.memory import LoadOptions, peak_resident
from glmchat.engine.weights import active_bytes
from glmchat.errors import ModelError, UsageError
from glmchat.glm.checkpoints import resolve


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    with open_local("demo", LoadOptions(device_map="cpu")) as engine:
        yield engine


def active_by_hand(config: dict[str, int]) -> int:
    """Bytes in BF16 of what one token reads of the demo, from its config alone."""
    hidden, head = config["hidden_size"], config["head_dim"]
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    layers, dense = config["num_hidden_layers"], config["first_k_dense_replace"]
    queries, keys = heads * head, groups * head
    attention = hidden * (queries + 2 * keys) + queries + 2 * keys + queries * hidden + 2 * head
    expert = 3 * hidden * config["moe_intermediate_size"]
    router = hidden * config["n_routed_experts"]
    moe = router + expert * (config["num_experts_per_tok"] + config["n_shared_experts"])
    norms = (2 * layers + 1) * hidden
    feed = dense * 3 * hidden * config["intermediate_size"] + (layers - dense) * moe
    return 2 * (layers * attention + feed + norms + hidden * config["vocab_size"])


def test_what_is_measured_of_the_demo(engine: LocalEngine) -> None:
    steps: list[str] = []
    measured = measure(engine, (16, 200), repeats=2, on_step=steps.append)
    config = json.loads((resolve("demo").folder / "config.json").read_text())
    assert measured.info == engine.info
    assert measured.active_bytes == active_by_hand(config)
    assert measured.weights_bytes > 2 * engine.info.parameters, "the MTP layer counts"
    assert set(measured.bandwidth) == {"cpu"}
    assert measured.peak_memory["process"] > measured.weights_bytes
    assert [at.context_tokens for at in measured.lengths] == [16, 200]
    kv_bytes = 2 * 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
    for at in measured.lengths:
        assert at.kv_cache_bytes == at.context_tokens * kv_bytes
        assert at.prefill_tokens_per_s == pytest.approx(at.context_tokens / at.ttft_s)
        assert at.limit_tokens_per_s is not None
        assert at.limit_share is not None
        read = measured.active_bytes + at.kv_cache_bytes
        assert at.limit_tokens_per_s == pytest.approx(measured.bandwidth["cpu"] / read)
        assert 0 < at.limit_share < 1.5
    assert measured.guessing is not None
    assert 1 <= measured.guessing.tokens_per_forward <= 6
    assert "200 tokens of context, run 2 of 2" in steps


def test_without_guesses_none_are_told() -> None:
    with open_local("demo", LoadOptions(device_map="cpu", speculate="off")) as engine:
        assert measure(engine, (8,), repeats=1).guessing is None
        assert engine.lend(lambda decoder, *_: decoder.prefixes._branches) == [], "nothing measured is kept"


def test_offloaded_weights_have_no_limit(tiny_glm: Path, tmp_path: Path) -> None:
    options = LoadOptions(max_memory="cpu=400KB", offload_dir=str(tmp_path))
    with open_local(str(tiny_glm), options) as engine:
        measured = measure(engine, (8,), repeats=1)
    assert "disk" in engine.info.device
    assert measured.bandwidth == {}
    assert measured.lengths[0].limit_tokens_per_s is None
    assert measured.lengths[0].limit_share is None
    assert measured.lengths[0].decode_tokens_per_s > 0


def test_a_closed_engine_ends_it(engine: LocalEngine) -> None:
    with open_local("demo", LoadOptions(device_map="cpu", speculate="off")) as other:
        busy = threading.Event()
        threading.Thread(target=lambda: (busy.wait(), other.close()), daemon=True).start()
        began = time.perf_counter()
        with pytest.raises(ModelError, match="closed"):
            measure(other, (4000,), repeats=1000, on_step=lambda _: busy.set())
    assert time.perf_counter() - began < 10
    with pytest.raises(ModelError, match="closed"):
        other.lend(lambda *_: None)


def test_a_fault_of_a_job_is_one_line(engine: LocalEngine) -> None:
    with pytest.raises(ModelError, match=r"demo failed while running: .*by zero"):
        engine.lend(lambda *_: 1 // 0)
    assert engine.lend(lambda *_: 1) == 1


@pytest.mark.parametrize(
    ("wanted", "context", "chosen"),
    [
        ((), 131072, (128, 1024, 4096, 8192)),
        ((), 4096, (128, 1024)),
        ((), 64, (56,)),
        ((), 0, (128, 1024, 4096, 8192)),
        ((4088, 5), 4096, (4088, 5)),
        ((9999999,), 0, (9999999,)),
    ],
)
def test_which_lengths(wanted: tuple[int, ...], context: int, chosen: tuple[int, ...]) -> None:
    assert choose_lengths(wanted, "m", context) == chosen


def test_a_length_beyond_the_context_is_refused(engine: LocalEngine) -> None:
    with pytest.raises(UsageError, match="5000: the context of demo holds 4,096 tokens; 4,088 is the most"):
        measure(engine, (128, 5000))


def test_tied_embeddings_are_read_as_lm_head(tiny_glm: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = []
    for tied in (False, True):
        config = AutoConfig.from_pretrained(tiny_glm, tie_word_embeddings=tied)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        model.tie_weights()
        sizes.append(active_bytes(model))
    assert sizes[0] == sizes[1]


def test_bandwidth_and_memory_are_plausible() -> None:
    assert 1e8 < read_bandwidth("cpu") < 1e13
    assert 50e6 < peak_resident() < 1e12
