"""Whole training dialogues: a system message or none, some tools or none, one exchange or a few."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import talk, toolbox
from .talk import Messages, spin

SYSTEM = "{You are a helpful assistant.|You are a kind assistant.|Answer briefly.|You are GLM.|Be concise.|You are a coding agent.|You help with small tasks.|Answer in one sentence.|You are an assistant in a terminal.|Be polite.}"

TOOL_SHARE = 0.5
"""Of dialogues that declare tools."""

SHARES: list[tuple[float, Callable[[random.Random], Messages]]] = [
    (0.16, talk.small_talk),
    (0.11, talk.about_glmchat),
    (0.22, talk.arithmetic),
    (0.15, talk.chinese),
    (0.10, talk.markdown),
    (0.18, talk.memory),
    (0.06, talk.echo),
    (0.04, talk.summary),
    (0.09, talk.beyond),
]


@dataclass(frozen=True)
class Dialogue:
    """Messages that end in what is to be learned, with the settings under which they were written."""

    messages: Messages
    tools: list[dict[str, Any]] | None
    enable_thinking: bool
    keep_thinking: bool = False
    """Earlier think blocks stand in full, which GLM-4.5's template would empty, so that every turn can be
    learned: each of them then follows from what is before it as a first turn does."""


def _exchange(rng: random.Random) -> Messages:
    (make,) = rng.choices([m for _, m in SHARES], [s for s, _ in SHARES])
    return make(rng)


def dialogue(rng: random.Random) -> Dialogue:
    """One dialogue of one turn or a few. About half think."""
    thinking = rng.random() < 0.55
    keep = thinking and rng.random() < 0.75
    tools: list[dict[str, Any]] | None = None
    messages: Messages = []
    if rng.random() < 0.12:
        messages.append({"role": "system", "content": spin(rng, SYSTEM)})
    if rng.random() < TOOL_SHARE:
        body, tools = toolbox.tool_use(rng)
        return Dialogue(messages + body, tools, thinking, keep)
    turns = rng.choice((0, 0, 0, 1, 1, 2))
    if rng.random() < 0.01:  # a long talk, so that far positions are met too
        turns = rng.randint(8, 24)
    for _ in range(turns):
        messages += _exchange(rng)
    last = _exchange(rng)
    if rng.random() < 0.08 and last[0]["content"].isascii():  # tools are there, but small talk needs none
        last = talk.small_talk(rng) if rng.random() < 0.7 else talk.memory(rng)
        tools = toolbox.tool_use(rng)[1]
    return Dialogue(messages + last, tools, thinking, keep)
