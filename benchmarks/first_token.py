"""Seconds of one load up to the first token, in a process of its own: `python -m benchmarks.first_token MODEL
glmchat|bare`."""

from __future__ import annotations

import sys
import time

from glmchat.glm.checkpoints import resolve, with_weights

PROMPT = [5, 17, 42, 99]


def main(model: str, side: str) -> None:
    from glmchat.engine.environ import bring_torch

    bring_torch()
    import torch
    import transformers.models.glm4_moe.modeling_glm4_moe  # noqa: F401
    from transformers import AutoModelForCausalLM, DynamicCache

    checkpoint = with_weights(resolve(model))
    with torch.inference_mode():
        if side == "bare":
            began = time.perf_counter()
            bare = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype="auto", device_map="cpu")
            cache = DynamicCache(config=bare.config)
            ids = torch.tensor([PROMPT])
            logits = bare(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits[0]
        else:
            from glmchat.engine.loading import load_model
            from glmchat.engine.memory import LoadOptions

            began = time.perf_counter()
            loaded = load_model(checkpoint, LoadOptions(device_map="cpu"), lambda _: None)
            logits, _ = loaded.forward(loaded.ids(PROMPT), loaded.new_cache())
        int(logits.argmax())
        print(time.perf_counter() - began)


if __name__ == "__main__":
    main(*sys.argv[1:])
