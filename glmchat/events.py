"""What travels from an engine to a screen: frozen values, in the order in which they happen.

One turn of an engine is: PromptReady, then any number of PrefillProgress, ThinkingDelta,
ThinkingDone, AnswerDelta and ToolCallReady, and exactly one TurnDone, which is the last. A Chat may
put TurnsDropped before them. Loading a model yields LoadProgress. A front end's transcript is a pure
function of the events received so far.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from .messages import Message, ToolCall

FinishReason: TypeAlias = Literal["stop", "length", "tool_calls", "interrupted", "context"]


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a model load is. `done` of `total` bytes; total 0 means unknown.

    `shard` of `shards` files of weights is being read; 0 before and after that.
    """

    stage: str
    done: int = 0
    total: int = 0
    shard: int = 0
    shards: int = 0


@dataclass(frozen=True, slots=True)
class PromptReady:
    """The prompt is encoded: its length in tokens, and how many of them the KV cache already holds."""

    prompt_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """`done` of `total` prompt tokens have been prefilled."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class TurnsDropped:
    """The context is full: the `turns` oldest exchanges that were still sent are left out from now on."""

    turns: int


@dataclass(frozen=True, slots=True)
class ThinkingDelta:
    """More text of the think block, which has `tokens` so far; 0 where the engine does not count."""

    text: str
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class ThinkingDone:
    """The think block ended. `closed` is false when the model never wrote `</think>`."""

    seconds: float
    tokens: int
    closed: bool = True


@dataclass(frozen=True, slots=True)
class AnswerDelta:
    """More text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallReady:
    """One whole tool call, its arguments typed by the schema of the tool."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class ToolCallBroken:
    """Markup of a tool call that is incomplete or nameless; it is never run. `raw` is its text."""

    raw: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one turn; `cached_tokens` are those of the prompt that were not computed anew."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one turn. `ttft_s` is the time to first token, prefill included; None: there was none."""

    ttft_s: float | None = None
    decode_tokens_per_s: float | None = None
    total_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TurnDone:
    """The turn is over. `message` is the assistant's turn as it is to be stored."""

    message: Message
    finish_reason: FinishReason
    usage: Usage = field(default_factory=Usage)
    timing: Timing = field(default_factory=Timing)


Event: TypeAlias = (
    LoadProgress
    | PromptReady
    | PrefillProgress
    | TurnsDropped
    | ThinkingDelta
    | ThinkingDone
    | AnswerDelta
    | ToolCallReady
    | ToolCallBroken
    | TurnDone
)
