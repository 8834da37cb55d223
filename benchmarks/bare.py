"""The shortest script that answers, for startup.py to compare with: `bare.py FOLDER PROMPT TOKENS`."""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, prompt, tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
with torch.inference_mode():
    output = model.generate(**inputs, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :]))
