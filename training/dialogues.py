"""Whole training dialogues: a system message or none, some tools or none, one exchange or a few."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import talk, toolbox
from .talk import Messages, spin

SYSTEM = "{You are a helpful assistant.|You are a kind assistant.|Answer briefly.|You are GLM.|Be concise.|You are a coding agent.|You help with small tasks.|Answer in one sentence.|You are an assistant in a terminal.|Be polite.}"

SHARES: list[tuple[float, Callable[[random.Random], Messages]]] = [
    (0.16, talk.small_talk),
    (0.11, talk.about_glmchat),
    (0.22, talk.arithmetic),
    (0.12, talk.chinese),
    (0.10, talk.markdown),
    (0.12, talk.memory),
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


def _exchange(rng: random.Random) -> Messages:
    (make,) = rng.choices([m for _, m in SHARES], [s for s, _ in SHARES])
    return make(rng)


def dialogue(rng: random.Random, *, tool_share: float = 0.55) -> Dialogue:
    """One dialogue. About half think; with thinking off every answer in it is learned, else the last."""
    thinking = rng.random() < 0.55
    tools: list[dict[str, Any]] | None = None
    messages: Messages = []
    if rng.random() < 0.12:
        messages.append({"role": "system", "content": spin(rng, SYSTEM)})
    if rng.random() < tool_share:
        body, tools = toolbox.tool_use(rng)
        if rng.random() < 0.08:
            messages += talk.small_talk(rng)
        elif rng.random() < 0.1 and body[-1]["role"] == "assistant" and not body[-1].get("tool_calls"):
            body += talk.small_talk(rng)
        return Dialogue(messages + body, tools, thinking)
    turns = rng.choice((0, 0, 0, 1, 1, 2) if not thinking else (0, 0, 0, 0, 1))
    if rng.random() < 0.015:  # a long talk, so that far positions are met too
        turns = rng.randint(8, 24)
    for _ in range(turns):
        messages += _exchange(rng)
    last = _exchange(rng)
    if rng.random() < 0.2 and last[0]["content"].isascii():
        kind = rng.random()
        if kind < 0.7:  # tools are there, but small talk needs none
            last, tools = (
                talk.small_talk(rng),
                [toolbox.made_up(rng).declaration, toolbox.KNOWN["read_file"](rng)][: rng.randint(1, 2)],
            )
        else:
            last, tools = talk.memory(rng), [toolbox.KNOWN["get_weather"](rng)]
    return Dialogue(messages + last, tools, thinking)
