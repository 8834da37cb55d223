"""What travels from an engine to a screen: frozen values, in the order in which they happen.

One turn of an engine is: PromptReady, then any number of PrefillProgress, ThinkingDelta,
ThinkingDone, AnswerDelta and ToolCallReady, and exactly one TurnDone, which is the last. A Chat may
put TurnsDropped before them; where it runs tools, each round but the last ends in a RoundDone instead, after
which come ToolStarted, ToolOutput and ToolDone of its calls. Loading a model yields LoadProgress. A front
end's transcript is a pure function of the events received so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from .messages import Message, ToolCall

FinishReason: TypeAlias = Literal["stop", "length", "tool_calls", "tool_limit", "interrupted", "context"]


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
class ToolServersStarting:
    """The turn waits for MCP servers, whose tools the model is to be told of."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ToolServerFailed:
    """An MCP server could not be reached, so its tools are not there; `why` goes on behind its name."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class ToolStarted:
    """A call that was found well-formed and allowed is being run."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """The newest line that a running call wrote."""

    call_id: str
    line: str


@dataclass(frozen=True, slots=True)
class ToolDone:
    """What came of a call, run or not. `text` is what the model reads; `note` says what went wrong."""

    call: ToolCall
    text: str
    ok: bool
    note: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one turn; `cached_tokens` are those of the prompt that were not computed anew.

    `drafted_tokens` were guessed ahead, of which `accepted_tokens` came out as guessed.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one turn. `ttft_s` is the time to first token, prefill included; None: there was none."""

    ttft_s: float | None = None
    decode_tokens_per_s: float | None = None
    total_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RoundDone:
    """The model called tools, which are run now; then it goes on."""

    message: Message
    usage: Usage = field(default_factory=Usage)
    timing: Timing = field(default_factory=Timing)


@dataclass(frozen=True, slots=True)
class TurnDone:
    """The turn is over. `message` is the assistant's newest message as it is to be stored.

    With tool calls in it a turn has several rounds; `usage` and `timing` are then those of all together, the
    prompt's tokens those of the newest round. `context_tokens` is what the conversation holds now.
    """

    message: Message
    finish_reason: FinishReason
    usage: Usage = field(default_factory=Usage)
    timing: Timing = field(default_factory=Timing)
    messages: tuple[Message, ...] = ()
    """Every message that the turn put behind the question; a Chat fills it in."""
    context_tokens: int = 0


def sum_usage(rounds: Sequence[Usage]) -> Usage:
    """Of a turn with these rounds: the prompt of the newest, and all that was written."""
    return replace(
        rounds[-1],
        completion_tokens=sum(u.completion_tokens for u in rounds),
        reasoning_tokens=sum(u.reasoning_tokens for u in rounds),
        drafted_tokens=sum(u.drafted_tokens for u in rounds),
        accepted_tokens=sum(u.accepted_tokens for u in rounds),
    )


def sum_timing(rounds: Sequence[TurnDone]) -> Timing:
    """Of a turn with these rounds: the first one's time to first token, decode speed over all of them."""
    if len(rounds) == 1:
        return rounds[0].timing
    speeds = [(r.usage.completion_tokens - 1, r.timing.decode_tokens_per_s) for r in rounds]
    seconds = sum(tokens / speed for tokens, speed in speeds if speed)
    tokens = sum(tokens for tokens, speed in speeds if speed)
    return Timing(
        ttft_s=rounds[0].timing.ttft_s,
        decode_tokens_per_s=tokens / seconds if seconds else None,
        total_s=sum(r.timing.total_s for r in rounds),
    )


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
    | ToolServersStarting
    | ToolServerFailed
    | ToolStarted
    | ToolOutput
    | ToolDone
    | RoundDone
    | TurnDone
)
