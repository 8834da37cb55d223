"""Training batches: dialogues as token ids with a weight for each, and the drills from which copying arises."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from tokenizers import Tokenizer

from glmchat import render_prompt

from . import talk, toolbox, words
from .dialogues import Dialogue, dialogue

CONTEXT_SHARE = 0.12
"""The share of tokens that the assistant did not write and that are learned all the same, at CONTEXT_WEIGHT."""
CONTEXT_WEIGHT = 0.25
DRILL_SHARE = 0.36
"""The share of drills among the examples, once the talk has begun."""
NAMING_WEIGHT = 2.0
"""The weight of a call's name and of its parameters' names: the few tokens for which the tools are read."""


def as_text(example: Dialogue) -> str:
    """The dialogue through the chat template, with the stop token that ends its last turn."""
    messages = [
        m if example.enable_thinking or m["role"] != "assistant" else {**m, "reasoning_content": ""}
        for m in example.messages
    ]
    parts = _turns(messages) if example.keep_thinking else [messages]
    text = "".join(
        render_prompt(
            part,
            None if i else example.tools,
            enable_thinking=example.enable_thinking,
            add_generation_prompt=False,
        ).removeprefix(_PREFIX if i else "")
        for i, part in enumerate(parts)
    )
    return text + ("<|observation|>" if messages[-1].get("tool_calls") else "<|user|>")


_PREFIX = "[gMASK]<sop>"


def _turns(messages: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Cut before every user message but the first."""
    turns: list[list[dict[str, Any]]] = [[]]
    for message in messages:
        if message["role"] == "user" and any(m["role"] == "user" for m in turns[-1]):
            turns.append([])
        turns[-1].append(message)
    return turns


Batch: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"
"""Ids and weights, both (batch, length)."""


@dataclass(frozen=True)
class Example:
    """Token ids, and the loss weight of each of them as a target."""

    ids: list[int]
    weights: list[float]


class Examples:
    """An endless, seeded stream of examples for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._tokenizer = tokenizer
        self._rng = random.Random(seed)
        ids = {
            t: tokenizer.token_to_id(t)
            for t in ("<|assistant|>", "<|user|>", "<|observation|>", "[gMASK]", "<sop>")
        }
        self._assistant, self._user, self._observation = (
            ids["<|assistant|>"],
            ids["<|user|>"],
            ids["<|observation|>"],
        )
        self._name_begins, self._name_ended = (
            {tokenizer.token_to_id(t) for t in names}
            for names in (("<tool_call>", "<arg_key>"), ("</tool_call>", "<arg_value>"))
        )
        self._prefix = [ids["[gMASK]"], ids["<sop>"]]
        self._plain = [i for i in range(tokenizer.get_vocab_size()) if i < min(ids.values())]
        letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-"
        self._letters = [tokenizer.token_to_id(c) for c in letters]

    def talk(self) -> Example:
        """A dialogue. Where earlier think blocks are emptied, as the template does, only what follows the
        last question is learned: the model must not learn to write empty ones."""
        example = dialogue(self._rng)
        ids = self._tokenizer.encode(as_text(example), add_special_tokens=False).ids
        start = 0
        if example.enable_thinking and not example.keep_thinking:
            start = max(i for i, t in enumerate(ids[:-1]) if t == self._user)
        weights, inside, naming = [], False, False
        for i, token in enumerate(ids):
            if inside and i > start:
                weights.append(NAMING_WEIGHT if naming else 1.0)
            else:
                weights.append(CONTEXT_WEIGHT * (self._rng.random() < CONTEXT_SHARE))
            if token in self._name_begins:
                naming = True
            elif token in self._name_ended:
                naming = False
            if token == self._assistant:
                inside = True
            elif token in (self._user, self._observation):
                inside = False
        return Example(ids, weights)

    def _span(self, length: int) -> list[int]:
        """Tokens to be copied: any tokens, letters, expressions, or words with spaces."""
        roll = self._rng.random()
        if roll < 0.35:
            return self._rng.choices(self._plain, k=length)
        if roll < 0.6:
            return self._rng.choices(self._letters, k=length)
        if roll < 0.75:
            text = " ".join(words.expression(self._rng) for _ in range(3))
        else:
            text = " ".join(words.word(self._rng) for _ in range(length))
        return self._tokenizer.encode(text, add_special_tokens=False).ids[:length]

    def repeat(self, longest: int, *, any_token: bool = False) -> Example:
        """A short random span, again and again, up to `longest` tokens each: the drill of induction."""
        length = self._rng.randint(4, longest)
        span = self._rng.choices(self._plain, k=length) if any_token else self._span(length)
        times = self._rng.randint(2, 3)
        ids = self._prefix + span * times
        weights = [0.0] * (len(self._prefix) + len(span)) + [1.0] * (len(span) * (times - 1))
        return Example(ids, weights)

    def recall(self) -> Example:
        """Pairs of a key and a value, then the keys in another order, each with its value."""
        pairs = [
            (self._span(self._rng.randint(1, 3)), self._span(self._rng.randint(1, 6)))
            for _ in range(self._rng.randint(2, 7))
        ]
        colon, line = (
            self._tokenizer.token_to_id(":"),
            self._tokenizer.encode("\n", add_special_tokens=False).ids,
        )
        ids, weights = list(self._prefix), [0.0] * len(self._prefix)
        for learned in (0.0, 1.0):
            self._rng.shuffle(pairs)
            for key, value in pairs:
                ids += [*key, colon, *value, *line]
                weights += [0.0] * (len(key) + 1) + [learned] * (len(value) + len(line))
        return Example(ids, weights)

    def columns(self) -> Example:
        """Single-digit sums as the think block works them out; every token of them is learned."""
        ids = self._tokenizer.encode(talk.column_drill(self._rng), add_special_tokens=False).ids
        return Example(self._prefix + ids, [0.0] * len(self._prefix) + [1.0] * len(ids))

    def matching(self) -> Example:
        """Questions matched with the names of tools; only what names the call is learned."""
        head, pairs = toolbox.matching_drill(self._rng)
        return self._pieces([(head, False), *((t, i == 1) for pair in pairs for i, t in enumerate(pair))])

    def calling(self) -> Example:
        """Calls of declared tools; only the names of the parameters are learned."""
        head, pieces = toolbox.calling_drill(self._rng)
        return self._pieces([(head, False), *pieces])

    def _pieces(self, pieces: list[tuple[str, bool]]) -> Example:
        """Pieces of text, one after the other, each learned or not."""
        ids, weights = list(self._prefix), [0.0] * len(self._prefix)
        for text, learned in pieces:
            part = self._tokenizer.encode(text, add_special_tokens=False).ids
            ids += part
            weights += [float(learned)] * len(part)
        return Example(ids, weights)

    def drills(self, tokens: int, step: int, steps: int) -> Iterator[Batch]:
        """Copying alone: at first short spans of any tokens, in the second half longer ones and pairs too."""
        if step < steps // 2:
            return self._batched([self.repeat(8, any_token=True) for _ in range(1200)], tokens)
        longest = 8 + 24 * max(0, 2 * step - steps) // steps
        pool = [self.repeat(longest) if self._rng.random() < 0.6 else self.recall() for _ in range(900)]
        return self._batched(pool, tokens)

    def talks(self, tokens: int) -> Iterator[Batch]:
        """Dialogues, and a share of drills so that copying stays exact."""
        pool = []
        for _ in range(640):
            if self._rng.random() >= DRILL_SHARE:
                pool.append(self.talk())
            else:
                drill = self._rng.choice(
                    (
                        lambda: self.repeat(24),
                        self.recall,
                        self.columns,
                        self.columns,
                        self.matching,
                        self.matching,
                        self.calling,
                        self.calling,
                    )
                )
                pool.append(drill())
        return self._batched(pool, tokens)

    def _batched(self, pool: list[Example], tokens: int) -> Iterator[Batch]:
        """Batches of about `tokens` tokens. Examples of like length share one; padding is id 0 with
        weight 0, at the right."""
        pool.sort(key=lambda e: len(e.ids))
        groups: list[list[Example]] = [[]]
        for example in pool:
            if groups[-1] and len(example.ids) * (len(groups[-1]) + 1) > tokens:
                groups.append([])
            groups[-1].append(example)
        self._rng.shuffle(groups)
        for group in groups:
            width = max(len(e.ids) for e in group)
            ids = torch.zeros(len(group), width, dtype=torch.long)
            weights = torch.zeros(len(group), width)
            for row, e in enumerate(group):
                ids[row, : len(e.ids)] = torch.tensor(e.ids)
                weights[row, : len(e.ids)] = torch.tensor(e.weights)
            yield ids, weights
