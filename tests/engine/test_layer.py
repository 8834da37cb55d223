"""Decoder layers in one call: the very numbers of their steps, and only where it computes what they do."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, Glm4MoeConfig, LlamaConfig

from glmchat.engine import fused, kv, layer
from glmchat.engine.attention import use_own_attention
from glmchat.engine.cache import PrefixCache
from glmchat.engine.draft import Mtp
from glmchat.engine.loaded import LoadedModel, Stopped
from glmchat.engine.local import open_local
from glmchat.engine.memory import LoadOptions
from glmchat.engine.packing import pack, use_packed_experts
from glmchat.glm.checkpoints import resolve

pytestmark = pytest.mark.usefixtures("kernels")

DEMO = resolve("demo").folder
SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 96,
}
GLM: dict[str, Any] = {
    **SIZES,
    "hidden_size": 160,
    "moe_intermediate_size": 64,
    "n_routed_experts": 5,
    "num_experts_per_tok": 2,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "attention_bias": True,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "partial_rotary_factor": 0.5,
}
CONFIGS = {
    "demo": None,
    "biases": Glm4MoeConfig(**GLM),
    "norms of heads": Glm4MoeConfig(**GLM, use_qk_norm=True),
    "few heads": Glm4MoeConfig(**{**GLM, "num_attention_heads": 2}),
    "llama": LlamaConfig(**SIZES, mlp_bias=True),
}


def build(config: Any) -> Any:
    """A model that the kernels run: of random weights, or the bundled one."""
    if config is None:
        model = AutoModelForCausalLM.from_pretrained(DEMO, dtype="bfloat16")
    else:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        for name, weight in model.named_parameters():
            if weight.ndim == 1:  # biases are 0, and norms 1
                torch.nn.init.normal_(weight, float("norm" in name), 0.2)
    use_own_attention(model.eval())
    for _ in pack(model):
        pass
    use_packed_experts(model)
    fused.use_fused(model)
    return model


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of layers that were computed in one call."""
    numbers: list[int] = []
    run = layer.run

    def counting(whole: Any, number: int, *given: Any) -> Any:
        out = run(whole, number, *given)
        if out is not None:
            numbers.append(number)
        return out

    monkeypatch.setattr(layer, "run", counting)
    return numbers


@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_same_numbers(name: str, calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(CONFIGS[name])
    layers = model.config.num_hidden_layers
    parts = [torch.randint(300, (1, rows)) for rows in (5, 1, 3, 1, 70, 300, 1)]  # beyond the first room
    outs: list[list[Any]] = []
    caches = [kv.growing(DynamicCache(config=model.config)) for _ in range(2)]
    for cache in caches:
        calls.clear()
        outs.append([model(input_ids=ids, past_key_values=cache).logits for ids in parts])
        if cache is caches[0]:
            assert calls == (len(parts) - 1) * list(range(layers)), "all but the first, which makes the cache"
            monkeypatch.setattr(layer, "run", lambda *_: None)
    assert all(torch.equal(a, b) for a, b in zip(*outs, strict=True))
    for one, other in zip(*(cache.layers for cache in caches), strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)
        assert one.get_seq_length() == 381


@torch.inference_mode()
def test_where_it_is_not_that(calls: list[int]) -> None:
    """A cache of another kind, a mask, several rows of a batch, and numbers that are not in BF16."""
    model = build(CONFIGS["biases"])
    assert calls == [0, 1], "each kind is compared with its steps first"
    calls.clear()
    ids = torch.arange(8)[None]
    cache = DynamicCache(config=model.config)
    model(input_ids=ids, past_key_values=cache)
    expected = model(input_ids=ids, past_key_values=cache).logits
    assert not calls
    grown = kv.growing(DynamicCache(config=model.config))
    model(input_ids=ids, past_key_values=grown)
    unseen = torch.ones(1, 16).index_fill(1, torch.tensor([2]), 0)
    masked = model(input_ids=ids, past_key_values=grown, attention_mask=unseen).logits
    assert not torch.equal(masked, expected)
    model(input_ids=ids.expand(2, -1))
    assert not calls
    grown.crop(-8)
    assert torch.equal(model(input_ids=ids, past_key_values=grown).logits, expected)
    assert calls == [0, 1]


@torch.inference_mode()
def test_experts_in_groups_are_left_to_transformers(calls: list[int]) -> None:
    """They are chosen in another way: the layers that have them go step by step."""
    config = AutoConfig.from_pretrained(DEMO, n_group=2)
    model = AutoModelForCausalLM.from_pretrained(DEMO, config=config, dtype="bfloat16").eval()
    described = [layer.described(module) for module in model.model.layers]
    assert not any(described), "nothing is packed yet"
    use_own_attention(model)
    for _ in pack(model):
        pass
    use_packed_experts(model)
    fused.use_fused(model)
    dense = config.first_k_dense_replace
    described = [layer.described(module) for module in model.model.layers]
    assert [d is not None for d in described] == [number < dense for number in range(len(described))]


@pytest.fixture
def loaded() -> Iterator[LoadedModel]:
    """The bundled checkpoint with its MTP layer."""
    with open_local("demo", LoadOptions(device_map="cpu", speculate="mtp")) as engine:
        found: LoadedModel = engine.lend(lambda decoder, *_: decoder.loaded)
        with found.inference():
            yield found


def test_all_layers_at_once_or_one_by_one_are_what_transformers_does(
    loaded: LoadedModel, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Across the positions for which angles are computed together, too. One by one they can be stopped; so
    are the first tokens of a conversation, which make its cache."""
    outs: list[list[Any]] = [[], [], []]
    caches = [loaded.new_cache() for _ in outs]
    parts = (200, 1, 90, 3, 300, 1)
    every = list(range(5))
    for way, (made, cache) in enumerate(zip(outs, caches, strict=True)):
        calls.clear()
        if way == 2:
            monkeypatch.setattr(loaded, "_whole", None)
        for rows in parts:
            ids = loaded.ids([7 + 31 * n % 1000 for n in range(rows)])
            with loaded.stoppable(lambda: False) if way == 1 else contextlib.nullcontext():
                made.append(loaded.forward(ids, cache, rows))
        assert calls == [[], every * (len(parts) - 1), every * (len(parts) - 1)][way]
    for one in zip(*outs, strict=True):
        assert all(torch.equal(one[0][i], other[i]) for other in one[1:] for i in range(2))
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        assert all(torch.equal(layers[0].keys, other.keys) for other in layers[1:])
        assert all(torch.equal(layers[0].values, other.values) for other in layers[1:])


def test_a_forward_ends_between_two_layers(loaded: LoadedModel) -> None:
    cache, asked = loaded.new_cache(), iter([False, False, True])
    loaded.forward(loaded.ids([1, 2, 3]), cache)
    with pytest.raises(Stopped), loaded.stoppable(lambda: next(asked)):
        loaded.forward(loaded.ids([4, 5]), cache)
    assert [layer.get_seq_length() for layer in cache.layers] == [5, 5, 3, 3, 3]


def test_guesses_at_once_are_those_one_by_one(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prefixes = PrefixCache(loaded.new_cache, 0, loaded.copy)
    prompt = [7 + 31 * n % 1000 for n in range(70)]
    found: list[list[Any]] = [[], []]
    called: list[Any] = []
    head = loaded.mtp
    assert head is not None
    at_once = head.draft

    def counting(*given: Any) -> Any:
        called.append(at_once(*given))
        return called[-1]

    for guesses, draft in zip(found, (counting, lambda *_: None), strict=True):
        monkeypatch.setattr(head, "draft", draft)
        branch = prefixes.begin(prompt)
        drafter = Mtp(head, loaded, branch)
        _, states = loaded.forward(loaded.ids(prompt), branch.cache)
        drafter.read(prompt, states)
        for token, most, right in ((5, 4, 2), (9, 1, 0), (11, 6, 6), (3, 3, 0)):
            guesses.append(drafter.draft(token, most))
            fed = [token, *guesses[-1][:right]]
            _, states = loaded.forward(loaded.ids(fed), branch.cache)
            drafter.read(fed, states)
        drafter.settle()
        guesses += [layer.keys for layer in branch.drafts.layers]
    assert len(called) == 4
    assert None not in called
    assert found[0][:4] == found[1][:4]
    assert [len(guesses) for guesses in found[0][:4]] == [4, 1, 6, 3]
    assert torch.equal(found[0][4], found[1][4])


def on_one_processor() -> dict[int, set[int]]:
    """Threads of this process that may run on no other."""
    found = {}
    for thread in map(int, os.listdir("/proc/self/task")):
        with contextlib.suppress(OSError):  # it has ended
            found[thread] = os.sched_getaffinity(thread)
    return {thread: where for thread, where in found.items() if len(where) == 1}


@torch.inference_mode()
def test_after_a_pause_each_thread_has_a_processor_of_its_own() -> None:
    """And a little later all are free again; the one that calls is while it does not compute."""
    usual, threads = os.sched_getaffinity(0), torch.get_num_threads()
    if len(usual) < 2:
        pytest.skip("there is but one processor")
    model = build(CONFIGS["llama"])
    cache = kv.growing(DynamicCache(config=model.config))
    mine: list[set[int]] = []
    ended = threading.Event()

    def watch(thread: int) -> None:
        while not ended.is_set():
            mine.append(os.sched_getaffinity(thread))
            time.sleep(1e-4)

    def step(rows: int) -> None:
        model(input_ids=torch.ones(1, rows, dtype=torch.long), past_key_values=cache)

    try:
        torch.set_num_threads(2)
        step(5)
        step(1)  # all in one call from now on
        watcher = threading.Thread(target=watch, args=(threading.get_native_id(),))
        watcher.start()
        time.sleep(0.1)
        step(600)
        kept = on_one_processor()
        ended.set()
        watcher.join()
        assert len(kept) == 1
        assert os.sched_getaffinity(0) == usual
        (other,) = kept.values()
        while_it_computed = [where for where in mine if where != usual]
        assert while_it_computed, "it was looked at meanwhile"
        assert all(len(where) == 1 and where != other for where in while_it_computed)
        deadline = time.monotonic() + 10
        while on_one_processor() and time.monotonic() < deadline:
            step(1)
        assert not on_one_processor()
    finally:
        ended.set()
        torch.set_num_threads(threads)
