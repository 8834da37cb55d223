"""Which checkpoints are measured: the bundled one, one of 270M random parameters, and SmolLM2 if installed.

The random one is large enough that the model, not Python, takes the time; nobody here made the last one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glmchat.engine.mtp import MtpHead
from glmchat.glm.checkpoints import resolve
from tests import smollm2

from .gpu import AIR

SHAPE = {
    "hidden_size": 1024,
    "num_hidden_layers": 10,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "intermediate_size": 4096,
    "moe_intermediate_size": 480,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "max_position_embeddings": 16384,
    "num_nextn_predict_layers": 0,
}


LARGE = SHAPE | {
    "num_hidden_layers": 32,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 320,
    "n_routed_experts": 24,
    "num_nextn_predict_layers": 1,
}
"""820M parameters and an MTP layer, in many layers, as large models have them: one is a small part of all."""

AIR_LAYERS = {
    **{key: value for key, value in AIR.items() if key != "vocab_size"},
    "num_hidden_layers": 2,
    "num_nextn_predict_layers": 0,
}
"""A dense layer and one with all of its experts in the shape of GLM-4.5-Air: what attention to a long history
takes beside the weights of a token is what it is there; in small models it is several times as much."""


FLASH_LAYERS = {
    "hidden_size": 2048,
    "num_hidden_layers": 2,
    "num_attention_heads": 20,
    "num_key_value_heads": 20,
    "q_lora_rank": 768,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "v_head_dim": 256,
    "intermediate_size": 10240,
    "moe_intermediate_size": 1536,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 1,
    "topk_group": 1,
    "max_position_embeddings": 16384,
}
"""A dense layer and one with a quarter of its experts in the shape of GLM-4.7-Flash (glm4_moe_lite), which
attends to latents."""


def write_random_checkpoint(folder: Path, shape: dict[str, int] = SHAPE, kind: str = "glm4_moe") -> Path:
    """Write one to `folder` in bfloat16 with the bundled checkpoint's tokenizer; always the same weights.

    No token ends its answer, in any of its files: it would come by chance, and rounding would decide when.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    demo = resolve("demo").folder
    known = AutoConfig.from_pretrained(demo)
    if kind == known.model_type:
        config = AutoConfig.from_pretrained(demo, **shape)
    else:
        config = AutoConfig.for_model(kind, vocab_size=known.vocab_size, **shape)
    config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    if shape.get("num_nextn_predict_layers"):
        _add_mtp_layer(folder / "model.safetensors", model)
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.copy(demo / name, folder)
    for name in ("tokenizer_config.json", "generation_config.json"):
        settings = json.loads((demo / name).read_text(encoding="utf-8"))
        kept = {key: value for key, value in settings.items() if not key.startswith("eos_token")}
        (folder / name).write_text(json.dumps(kept), encoding="utf-8")
    assert not resolve(str(folder)).eos_token_ids
    getattr(os, "sync", lambda: None)()  # else it is written to the disk while something is measured
    return folder


def _add_mtp_layer(file: Path, model: Any) -> None:
    """Random weights under their names on disk, into the file of the trunk's."""
    from safetensors.torch import load_file, save_file

    prefix = f"model.layers.{model.config.num_hidden_layers}."
    layer = {prefix + name: t.normal_(std=0.02).clone() for name, t in MtpHead(model).tensors().items()}
    save_file(load_file(file) | layer, file, metadata={"format": "pt"})


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", action="append", help="checkpoint to run; default: demo, a random 270M, SmolLM2"
    )


@contextmanager
def chosen_models(args: argparse.Namespace) -> Iterator[list[str]]:
    """The checkpoints that `--model` names, or the default ones; what is made for it goes afterwards."""
    if args.model:
        yield args.model
        return
    with tempfile.TemporaryDirectory() as folder:
        models = ["demo", str(write_random_checkpoint(Path(folder) / "random-270M"))]
        if smollm2.gguf_file() is None:
            print(f"SmolLM2 is left out: {smollm2.INSTALL}")
        else:
            models.append(str(smollm2.convert(Path(folder) / "SmolLM2-135M")))
        yield models
