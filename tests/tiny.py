"""A tiny real glm4_moe checkpoint that has learned a few answers by heart, made in seconds.

Its tokenizer is a byte-level BPE with GLM-4.5's control tokens; the weights are trained for a moment on
DIALOGUES, so that thinking, answers, tool calls and stop tokens come from a real model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SPECIAL = [
    *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
]
MARKUP = [
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    *("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "/nothink"),
]
CONTEXT = 1024

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@dataclass(frozen=True)
class Dialogue:
    """A question and what the model writes, control tokens as text, the stop token last."""

    question: str
    output: str
    thinking: bool = True
    tools: tuple[dict[str, Any], ...] = ()


LONG = "one two three four five six seven eight nine ten " * 6
HELLO = Dialogue("hello", "\n<think>A greeting. I greet back.</think>\nHello! How can I help you?<|user|>")
HELLO_NOTHINK = Dialogue("hello", "\nHi there.<|user|>", thinking=False)
CHINESE = Dialogue("你好", "\n<think></think>\n你好！🎉 很高兴见到你。<|user|>")
COUNT = Dialogue("count", f"\n<think>I count.</think>\n{LONG}done.<|user|>")
CALL = Dialogue(
    "weather in Beijing",
    "\n<think>I ask the tool.</think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n"
    "<arg_value>Beijing</arg_value>\n</tool_call><|observation|>",
    tools=(WEATHER,),
)
DIALOGUES = (HELLO, HELLO_NOTHINK, CHINESE, COUNT, CALL)


def build(folder: Path, *, steps: int = 120, key_value_heads: int = 1) -> Path:
    """Train and save the checkpoint into `folder`; `steps=0` leaves the weights random."""
    import torch
    from transformers import GenerationConfig, Glm4MoeConfig, Glm4MoeForCausalLM

    from glmchat.glm.template import ChatTemplate

    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    eos = [tokenizer.token_to_id(t) for t in ("<|endoftext|>", "<|user|>", "<|observation|>")]
    model = Glm4MoeForCausalLM(
        Glm4MoeConfig(
            vocab_size=tokenizer.get_vocab_size(), hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=key_value_heads, head_dim=32, intermediate_size=128, moe_intermediate_size=32,
            n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, first_k_dense_replace=1,
            n_group=1, topk_group=1, norm_topk_prob=True, routed_scaling_factor=1.0, use_qk_norm=True,
            max_position_embeddings=CONTEXT, eos_token_id=eos, pad_token_id=eos[0],
        )
    )  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more only wait for each other at this size
    _memorise(model, tokenizer, steps)
    torch.set_num_threads(threads)
    model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=eos[0])
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"})
    )
    (folder / "chat_template.jinja").write_text(ChatTemplate.load("glm-4.5").source, encoding="utf-8")
    return folder


def make_tokenizer() -> Any:
    """A byte-level BPE trained on the dialogues; markup tokens are added but not special, as in GLM-4.5."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    english = [d.question + d.output for d in DIALOGUES if d is not CHINESE]  # Chinese stays in single bytes
    tokenizer.train_from_iterator(english, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, special=False) for t in MARKUP])
    return tokenizer


def _memorise(model: Any, tokenizer: Any, steps: int) -> None:
    import torch

    batches = [
        _batch(
            tokenizer, [d for d in DIALOGUES if not d.tools]
        ),  # short ones; a padded long one costs the most
        _batch(tokenizer, [d for d in DIALOGUES if d.tools]),
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        for ids, targets in batches:
            logits = model(input_ids=ids, use_cache=False).logits
            torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten()
            ).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def _batch(tokenizer: Any, dialogues: list[Dialogue]) -> tuple[Any, Any]:
    """Ids and targets, [dialogues, longest]; only what the assistant writes is a target."""
    import torch

    from glmchat.glm.template import render_prompt

    rows, targets = [], []
    for d in dialogues:
        messages = [{"role": "user", "content": d.question}]
        prompt = tokenizer.encode(render_prompt(messages, list(d.tools), enable_thinking=d.thinking)).ids
        output = tokenizer.encode(d.output).ids
        rows.append(torch.tensor(prompt + output))
        targets.append(torch.tensor([-100] * len(prompt) + output))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True), pad(targets, batch_first=True, padding_value=-100)
