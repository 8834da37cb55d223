"""Chat models of other kinds give what transformers gives: each has something that GLM-4.5 has not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from glmchat.engine import latent
from glmchat.engine.attention import use_own_attention
from glmchat.engine.decode import Decoder
from glmchat.engine.local import open_local
from glmchat.engine.memory import LoadOptions
from glmchat.errors import ModelError
from glmchat.glm.checkpoints import resolve

VOCABULARY = 1543  # a little more than the demo's tokenizer knows, and no multiple of anything
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 160,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LATENT = {"q_lora_rank": 48, "kv_lora_rank": 32, "moe_intermediate_size": 48, "n_routed_experts": 6} | {
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
MAMBA = {"mamba_n_heads": 6, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_expand": 2}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1 + 0.01 * i for i in range(12)],
    "long_factor": [1.5 + 0.3 * i for i in range(12)],
    "original_max_position_embeddings": 256,
}
OTHERS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"tie_word_embeddings": True},
    # Values have another size than keys.
    "deepseek_v3": LATENT
    | {"num_attention_heads": 2, "num_key_value_heads": 2, "qk_nope_head_dim": 128}
    | {"qk_rope_head_dim": 64, "v_head_dim": 128, "head_dim": "none"},
    # As GLM-4.7-Flash, whose sizes are alike; 70 tokens or more attend to what latents expand to.
    "glm4_moe_lite": LATENT
    | {"kv_lora_rank": 256}
    | {"num_attention_heads": 2, "num_key_value_heads": 2, "qk_nope_head_dim": 48}
    | {"qk_rope_head_dim": 16, "v_head_dim": 64, "head_dim": "none"},
    # What they have read is not called past_key_values.
    "mamba2": {"num_heads": 6, "head_dim": 32, "state_size": 16, "n_groups": 1, "expand": 2},
    # A token's place is not told by its cache; norms have gates.
    "bamba": MAMBA | {"num_hidden_layers": 4, "attn_layer_indices": [1]},
    "granitemoehybrid": MAMBA
    | {"num_hidden_layers": 4, "layer_types": ["mamba", "attention"] * 2, "shared_intermediate_size": 64}
    | {"num_local_experts": 6, "num_experts_per_tok": 2},
    # Weights that its own code multiplies with.
    "falcon_mamba": {"state_size": 8},
    # Other rotary frequencies once there are more than 256 tokens, of those before as well.
    "phi3": {
        "rope_parameters": LONGROPE,
        "original_max_position_embeddings": 256,
        "head_dim": "none",
    },
    # Heads that differ from layer to layer, and windows.
    "gemma4_text": {
        "num_hidden_layers": 6,
        "sliding_window": 64,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
    },
}


def build(kind: str, folder: Path, **more: Any) -> Path:
    """A small checkpoint with weights that matter, in FP32."""
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    demo = resolve("demo").folder
    torch.manual_seed(0)
    sizes = {**SIZES, **OTHERS.get(kind, {}), **more}
    config = CONFIG_MAPPING[kind](**{name: size for name, size in sizes.items() if size != "none"})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.normal_(0, 1.2 / module.in_features**0.5)
            elif isinstance(module, torch.nn.Embedding):
                module.weight.normal_(0, 1)
    model.generation_config = GenerationConfig()
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.copy(demo / name, folder)
    settings = json.loads((demo / "tokenizer_config.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in settings.items() if not key.startswith("eos_token")}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept), encoding="utf-8")
    return folder


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(20, 1500, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def answered(decoder: Decoder, ids: list[int], count: int) -> list[int]:
    """The likeliest tokens behind a prompt."""
    out: list[int] = []
    with decoder.loaded.inference():
        decoding = decoder.begin(ids)
        for _ in decoding.prefill(lambda: False):
            pass
        for token in decoding.tokens(_Greedy(), count):  # type: ignore[arg-type]
            out.append(token)
            if len(out) == count:
                break
        decoding.keep()
    return out


class _Greedy:
    needs_history = False

    def __call__(self, logits: Any, _: Any) -> Any:
        return logits.argmax(-1)

    def each(self, logits: Any) -> Any:
        return iter(logits.argmax(-1).tolist())


@pytest.mark.parametrize("kind", OTHERS)
def test_the_same_answers(kind: str, tmp_path: Path) -> None:
    """To a short prompt, one of several chunks, and one that goes on behind the first answer."""
    folder = build(kind, tmp_path / kind)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def expected(ids: list[int]) -> list[int]:
        with torch.inference_mode():
            out = reference.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
        return out[0, len(ids) :].tolist()  # type: ignore[no-any-return]

    def check(decoder: Decoder, *_: Any) -> None:
        first = prompt(250)
        theirs = expected(first)
        assert answered(decoder, first, 12) == theirs
        long = prompt(700, seed=1)
        assert answered(decoder, long, 12) == expected(long)
        more = [*first, *theirs, *prompt(30, seed=2)]
        assert answered(decoder, more, 12) == expected(more)
        assert answered(decoder, first, 12) == theirs, "again, after a longer one"

    with open_local(str(folder), LoadOptions(device_map="cpu", dtype="float32")) as engine:
        engine.lend(check)


@pytest.mark.parametrize("kind", OTHERS)
def test_as_near_in_bf16(kind: str, tmp_path: Path) -> None:
    folder = build(kind, tmp_path / kind)
    ids = torch.tensor([prompt(40)])
    with torch.inference_mode():
        exact, rounded = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
            .eval()(input_ids=ids)
            .logits[0, -1]
            .float()
            for dtype in (torch.float32, torch.bfloat16)
        )

    def logits(decoder: Decoder, *_: Any) -> Any:
        return decoder.loaded.forward(ids, decoder.loaded.new_cache())[0][-1].float().clone()

    with open_local(str(folder), LoadOptions(device_map="cpu", dtype="bfloat16", speculate="off")) as engine:
        ours = engine.lend(lambda decoder, *_: _within(decoder, logits))
    error, usual = (float((out - exact).norm() / exact.norm()) for out in (ours, rounded))
    assert error < 2 * usual + 1e-3


def _within(decoder: Decoder, job: Any) -> Any:
    with torch.inference_mode():
        return job(decoder)


@pytest.mark.parametrize("act", ["gelu", "relu", "silu"])
def test_an_mlp_that_adds_little_is_what_it_is(act: str, tmp_path: Path) -> None:
    """Its kernel is for SiLU; that it gives something else is hard to see in the first layer."""
    folder = build("llama", tmp_path / act, hidden_act=act)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(0.001)
    model.to(torch.bfloat16).save_pretrained(folder)
    ids = torch.tensor([prompt(40)])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        rounded = model(input_ids=ids).logits[0, -1].float()
        exact = model.float()(input_ids=ids).logits[0, -1]
    with open_local(str(folder), LoadOptions(device_map="cpu", speculate="off")) as engine:
        ours = engine.lend(
            lambda decoder, *_: _within(
                decoder, lambda d: d.loaded.forward(ids, d.loaded.new_cache())[0][-1].float().clone()
            )
        )
    error, usual = (float((out - exact).norm() / exact.norm()) for out in (ours, rounded))
    assert error < 2 * usual + 1e-3


def test_one_that_remembers_in_a_way_of_its_own(tmp_path: Path) -> None:
    folder = build("rwkv", tmp_path / "rwkv", attention_hidden_size=96)
    with pytest.raises(ModelError, match="keeps what it has read in a way of its own"):
        open_local(str(folder), LoadOptions(device_map="cpu"))


class TestLatents:
    def test_they_stay_as_they_are_where_that_is_less(self, tmp_path: Path) -> None:
        with open_local(str(build("glm4_moe_lite", tmp_path)), LoadOptions(device_map="cpu")) as engine:
            model = engine.lend(lambda decoder, *_: decoder.loaded._model)
            attention = model.model.layers[1].self_attn
            assert attention.expand_kv is not attention.expand_latents
            assert latent.takes(attention, 1)
            assert latent.takes(attention, 71)
            assert not latent.takes(attention, 72)

    def test_another_order_of_the_matrix_is_seen(self, tmp_path: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(build("glm4_moe_lite", tmp_path), dtype=torch.float32)
        kind = type(model.model.layers[0].self_attn)
        usual = kind.expand_kv

        def other(self: Any, latents: Any, turned: Any) -> Any:
            keys, values = usual(self, latents, turned)
            return keys.flip(1), values

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kind, "expand_kv", other)
            use_own_attention(model)
        assert not any(hasattr(module, "expand_latents") for module in model.modules())

    def test_attention_as_asked_for_expands_them(self, tmp_path: Path) -> None:
        options = LoadOptions(device_map="cpu", attn="sdpa")
        with open_local(str(build("glm4_moe_lite", tmp_path)), options) as engine:
            model = engine.lend(lambda decoder, *_: decoder.loaded._model)
            assert not any(hasattr(module, "expand_latents") for module in model.modules())
