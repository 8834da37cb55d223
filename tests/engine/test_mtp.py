"""The MTP layer: read whole or not at all, the same numbers as transformers' own, drafts that come true."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import MtpModel

from glmchat import encode_prompt
from glmchat.engine.local import open_local
from glmchat.engine.memory import LoadOptions
from glmchat.engine.mtp import INDEX_FILE, WHOLE_FILE, MtpHead, load_mtp
from glmchat.errors import ModelError
from glmchat.events import LoadProgress
from tests import tiny

DEMO = Path(__file__).resolve().parents[2] / "glmchat" / "demo"
HIDDEN, LAYER = 64, "model.layers.2."
LENGTH = 20


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def mtp_tensors(trunk: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A layer like the trunk's last one but for noise, with the copies that real checkpoints hold too."""
    random = torch.Generator().manual_seed(1)
    last = {k.replace(".1.", ".2.", 1): v for k, v in trunk.items() if k.startswith("model.layers.1.")}
    tensors = {k: v + 0.1 * torch.randn(v.shape, generator=random) for k, v in last.items()}
    for name in ("enorm", "hnorm", "shared_head.norm"):
        tensors[f"{LAYER}{name}.weight"] = 1 + 0.2 * torch.randn(HIDDEN, generator=random)
    tensors[f"{LAYER}eh_proj.weight"] = 0.1 * torch.randn(HIDDEN, 2 * HIDDEN, generator=random)
    tensors[f"{LAYER}embed_tokens.weight"] = trunk["model.embed_tokens.weight"].clone()
    tensors[f"{LAYER}shared_head.head.weight"] = trunk["lm_head.weight"].clone()
    return tensors


def write(tensors: dict[str, torch.Tensor], file: Path) -> None:
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A random checkpoint in FP32 with an MTP layer."""
    tiny.build(tmp_path, steps=0)
    trunk = load_file(tmp_path / WHOLE_FILE)
    write(trunk | mtp_tensors(trunk), tmp_path / WHOLE_FILE)
    return tmp_path


def change(folder: Path, tensors: dict[str, torch.Tensor | None]) -> None:
    """Replace tensors of the layer, or remove those that are None."""
    stored: dict[str, Any] = load_file(folder / WHOLE_FILE) | {LAYER + k: v for k, v in tensors.items()}
    write({k: v for k, v in stored.items() if v is not None}, folder / WHOLE_FILE)


def split(folder: Path) -> None:
    """Into two shards, with the layer's tensors in both."""
    stored = load_file(folder / WHOLE_FILE)
    places = {k: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, k in enumerate(sorted(stored))}
    for file in set(places.values()):
        write({k: v for k, v in stored.items() if places[k] == file}, folder / file)
    (folder / WHOLE_FILE).unlink()
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def whole(head: MtpHead | None) -> MtpHead:
    assert head is not None
    return head


class Run:
    """Random ids, the trunk's states at them, and what the layer makes of both at once."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.model = load(folder, **options)
        self.head = whole(load_mtp(self.model, folder))
        ids = torch.randint(0, 300, (1, LENGTH + 1), generator=torch.Generator().manual_seed(2))
        self.next = ids[:, 1:]
        with torch.inference_mode():
            self.states = self.model.model(input_ids=ids[:, :-1]).last_hidden_state
            self.out = self.head.forward(self.next, self.states, self.head.new_cache())

    def forward(self, cache: Any, start: int, end: int) -> torch.Tensor:
        with torch.inference_mode():
            return self.head.forward(self.next[:, start:end], self.states[:, start:end], cache)


def test_experts_are_those_on_disk(folder: Path) -> None:
    stored = load_file(folder / WHOLE_FILE)
    head = whole(load_mtp(load(folder), folder))
    experts = head.layer["block"].mlp.experts
    for number in range(4):
        parts = [stored[f"{LAYER}mlp.experts.{number}.{k}_proj.weight"] for k in ("gate", "up", "down")]
        assert torch.equal(experts.gate_up_proj[number], torch.cat(parts[:2]))
        assert torch.equal(experts.down_proj[number], parts[2])
    assert torch.equal(head.layer["shared_head"]["norm"].weight, stored[f"{LAYER}shared_head.norm.weight"])
    assert all(torch.equal(tensor, stored[LAYER + name]) for name, tensor in head.tensors().items())


def test_cache_is_one_croppable_layer(folder: Path) -> None:
    run = Run(folder)
    cache = run.head.new_cache()
    assert [type(layer).__name__ for layer in cache.layers] == ["GrowingLayer"]
    run.forward(cache, 0, 7)
    cache.crop(-3)
    assert cache.get_seq_length() == 4


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_piece_by_piece_is_the_same_as_at_once(folder: Path, attention: str) -> None:
    run = Run(folder, attn_implementation=attention)
    cache = run.head.new_cache()
    cuts = [0, 1, 2, 3, 8, 9, LENGTH]
    parts = [run.forward(cache, a, b) for a, b in pairwise(cuts)]
    torch.testing.assert_close(torch.cat(parts, 1), run.out, rtol=1e-4, atol=1e-5)


def test_cut_back_and_gone_on_is_the_same_as_fresh(folder: Path) -> None:
    run = Run(folder)
    cache = run.head.new_cache()
    state = run.forward(cache, 0, 12)[:, -1:]
    for _ in range(3):  # drafts from the layer's own state, then thrown away
        with torch.inference_mode():
            state = run.head.forward(run.head.logits(state).argmax(-1), state, cache)
    cache.crop(-3)
    torch.testing.assert_close(run.forward(cache, 12, LENGTH), run.out[:, 12:], rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not hasattr(MtpModel, "forward_layer"), reason="transformers is older than 5.23")
def test_agrees_with_transformers_own(folder: Path) -> None:
    from transformers.cache_utils import MtpCache

    run = Run(folder)
    run.model._keys_to_ignore_on_load_unexpected = [r"model\.layers\.2.*"]  # there it looks for the names
    theirs = MtpModel.from_pretrained(run.model)
    cache = MtpCache(config=run.model.config.get_mtp_config())
    positions = torch.arange(1, LENGTH + 1)[None]  # of the tokens, not of the states: all one to RoPE
    with torch.inference_mode():
        out = theirs.forward_layer(0, run.states, positions, cache, input_ids=run.next)
        torch.testing.assert_close(run.out, out, rtol=1e-4, atol=1e-5)
        logits = theirs._project_to_logits(out)
        torch.testing.assert_close(run.head.logits(run.out), logits, rtol=1e-4, atol=1e-5)


def test_shards(folder: Path) -> None:
    expected = Run(folder).out
    split(folder)
    assert torch.equal(Run(folder).out, expected)


def test_dtype_is_the_trunks_but_for_the_choice_bias(folder: Path) -> None:
    head = whole(load_mtp(load(folder, dtype=torch.bfloat16), folder))
    others = {name for name, tensor in head.layer.state_dict().items() if tensor.dtype != torch.bfloat16}
    assert others == {"block.mlp.gate.e_score_correction_bias"}
    assert not any(tensor.requires_grad for tensor in head.layer.parameters())


def test_follows_the_trunk_to_other_kernels(folder: Path) -> None:
    run = Run(folder)
    run.model.set_experts_implementation("batched_mm")
    out = run.forward(run.head.new_cache(), 0, LENGTH)
    assert run.head.layer["block"].mlp.experts.config._experts_implementation == "batched_mm"
    torch.testing.assert_close(out, run.out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_nextn_predict_layers": 0},
        {"num_nextn_predict_layers": None},
        {"quantization_config": {"quant_method": "fp8"}},
        {"model_type": "llama"},
    ],
)
def test_no_layer_by_the_config(folder: Path, changes: dict[str, Any]) -> None:
    model = load(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    assert load_mtp(model, folder) is None


def test_no_layer_on_disk(tiny_glm: Path) -> None:
    assert json.loads((tiny_glm / "config.json").read_text())["num_nextn_predict_layers"] == 1
    assert load_mtp(load(tiny_glm), tiny_glm) is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"self_attn.q_proj.weight": None}, r"lacks model\.layers\.2\.self_attn\.q_proj\.weight of its MTP"),
        ({"mlp.experts.3.up_proj.weight": None, "enorm.weight": None}, r"enorm\.weight and 1 more of its"),
        ({"eh_proj.weight": torch.zeros(HIDDEN, HIDDEN)}, r"in the shape \[64, 64\] where.*\[64, 128\]"),
    ],
)
def test_half_a_layer_is_an_error(
    folder: Path, changes: dict[str, torch.Tensor | None], expected: str
) -> None:
    model = load(folder)
    change(folder, changes)
    with pytest.raises(ModelError, match=expected) as caught:
        load_mtp(model, folder)
    assert "\n" not in str(caught.value)


def test_a_shard_without_what_the_index_names_is_an_error(folder: Path) -> None:
    model = load(folder)
    split(folder)
    second = folder / "model-00002-of-00002.safetensors"
    write({"nothing": torch.zeros(1)}, second)
    with pytest.raises(
        ModelError, match=r"no readable model\.layers\.2\..* in model-00002-of-00002"
    ) as caught:
        load_mtp(model, folder)
    assert "\n" not in str(caught.value)


def test_layer_on_a_trunk_that_is_partly_on_disk(folder: Path, tmp_path: Path) -> None:
    run = Run(folder)
    parts = ("model.layers.0", "model.norm", "model.rotary_emb", "lm_head")
    placed = dict.fromkeys(parts, "cpu") | {"model.embed_tokens": "disk", "model.layers.1": "disk"}
    model = load(folder, device_map=placed, offload_folder=tmp_path / "offload")
    head = whole(load_mtp(model, folder))
    with torch.inference_mode():
        out = head.forward(run.next, run.states, head.new_cache())
    assert torch.equal(out, run.out)


def test_progress_does_not_count_the_layer(folder: Path) -> None:
    def total() -> int:
        progress: list[LoadProgress] = []
        with open_local(str(folder), LoadOptions(), on_progress=progress.append):
            assert progress[-1].done == progress[-1].total
        return progress[-1].total

    with_layer = total()
    change(folder, {k.removeprefix(LAYER): None for k in load_file(folder / WHOLE_FILE) if LAYER in k})
    assert total() == with_layer


class TestDemo:
    def test_drafts_are_what_the_trunk_writes(self) -> None:
        """`python -m training.mtp --measure` has the exact shares."""
        from training.evaluate import generate
        from training.evaluate import load as load_fast
        from training.mtp import accepted

        model, tokenizer = load_fast(DEMO)
        head = whole(load_mtp(model, DEMO))
        right: list[bool] = []
        for question in ("hello", "What is 17 + 25?", "Tell me about yourself.", "你好"):
            prompt = encode_prompt(tokenizer, [{"role": "user", "content": question}])
            (answer,) = generate(model, tokenizer, [prompt])
            right += [drafts[0] for drafts in accepted(head, model, prompt, answer)]
        assert sum(right) / len(right) >= 0.7

    def test_drafting_token_by_token_gives_what_training_saw(self) -> None:
        """`training.mtp.drafts` runs all chains at once, under a mask; decoding runs one, and crops."""
        from training.mtp import DEPTH, drafts

        model = load(DEMO, dtype=torch.float32)
        head = whole(load_mtp(model, DEMO))
        ids = torch.randint(0, 1000, (1, 12), generator=torch.Generator().manual_seed(3))
        with torch.inference_mode():
            states = model.model(input_ids=ids).last_hidden_state
            at_once = drafts(head, ids, states, DEPTH)
            cache = head.new_cache()
            for at in range(ids.shape[1] - DEPTH):
                state = head.forward(ids[:, at + 1 : at + 2], states[:, at : at + 1], cache)
                chain = [state]
                for j in range(1, DEPTH):
                    state = head.forward(ids[:, at + j + 1 : at + j + 2], state, cache)
                    chain.append(state)
                cache.crop(1 - DEPTH)
                for j, state in enumerate(chain):
                    torch.testing.assert_close(at_once[j][:, at + j], state[:, 0], rtol=1e-3, atol=1e-4)
