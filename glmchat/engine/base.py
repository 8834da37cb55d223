"""The protocol that every engine speaks: a conversation in, a stream of events out."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..errors import ContextFullError, UsageError
from ..events import Event
from ..kinds import SAMPLING
from ..messages import Conversation

if TYPE_CHECKING:
    from ..glm.encode import Prompt


CLOSED = "The engine is closed; open the model again."


LONGEST_TOKEN = 128
"""Bytes; no token of a known vocabulary is longer."""


def check_fits(size: int, model: str, context_length: int) -> None:
    """Refuse text of so many bytes for its mere length: encoding it, only to be told so, can take a minute.

    Raises: ContextFullError.
    """
    if context_length and size > context_length * LONGEST_TOKEN:
        raise ContextFullError(
            f"The prompt is {size:,} bytes long and the context of {model} holds {context_length:,} "
            "tokens, which is far less; send a part of it."
        )


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a screen says about the model in use."""

    name: str
    """As the person gave it: `demo`, a hub name, a folder."""
    device: str = ""
    """Where it runs, short: `cpu`, `cuda:0`, `2 GPUs + cpu`, or a server's host."""
    dtype: str = ""
    parameters: int = 0
    context_length: int = 0
    """In tokens; 0 when unknown."""
    load_s: float = 0.0
    thinks: bool = True
    """Whether the chat template knows `enable_thinking`; where not, the toggle has no effect."""
    ends: bool = True
    """Whether the checkpoint names a token that ends an answer; else only a limit does."""
    not_followed: tuple[str, ...] = ()
    """Settings of the checkpoint's generation_config.json that change nothing here."""


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How the next answer is sampled. None leaves the checkpoint's generation_config in force.

    Raises: UsageError for what the command line would not take either.
    """

    enable_thinking: bool = True
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    """New tokens at most; None: until the model stops or the context is full; 0: the prompt is only read."""
    seed: int | None = None
    greedy: bool = False

    def __post_init__(self) -> None:
        for name, kind in SAMPLING.items():
            value = getattr(self, name)
            if value is None or (name, value) == ("max_tokens", 0):  # which a program may want, but no person
                continue
            try:
                kind.read_value(value)
            except ValueError as e:
                raise UsageError(f"GenerationOptions: {name} {e}.") from None


class Engine(Protocol):
    """Makes one assistant turn at a time. Not re-entrant: a second `generate` waits for the first."""

    @property
    def info(self) -> ModelInfo: ...

    def generate(
        self,
        conversation: Conversation,
        *,
        tools: Sequence[dict[str, Any]] = (),
        options: GenerationOptions | None = None,
        cancel: threading.Event | None = None,
    ) -> Generator[Event, None, None]:
        """Yield one turn's events, the last a TurnDone.

        Setting `cancel` ends the turn within one decode step (or one prefill chunk) with
        finish_reason "interrupted" and the text so far. Closing the iterator does the same, silently.

        Raises: ContextFullError when the prompt leaves no room to answer; ModelError or ServerError
        when the engine fails. The engine stays usable after either.
        """
        ...

    def prepare(
        self,
        conversation: Conversation,
        *,
        tools: Sequence[dict[str, Any]] = (),
        options: GenerationOptions | None = None,
    ) -> None:
        """A hint: the next turn will be this one, maybe with more text in its last message. Returns at once.

        The engine may prefill it until it gets another hint or `generate` is called. A server is not told
        what was not sent.
        """
        ...

    def render(
        self,
        conversation: Conversation,
        *,
        tools: Sequence[dict[str, Any]] = (),
        options: GenerationOptions | None = None,
    ) -> Prompt | None:
        """The exact prompt of a turn, its token ids included; None where a server renders it out of sight.

        May be called while a turn runs. Raises: TemplateError; ModelError when there is no model.
        """
        ...

    def close(self) -> None:
        """Free the model and stop the threads. Idempotent."""
        ...


AnyEngine = TypeVar("AnyEngine", bound=Engine)


def ready(engine: AnyEngine) -> AnyEngine:
    """`engine` with its model loaded; where that fails it is closed. Raises what loading raised."""
    try:
        _ = engine.info
    except BaseException:
        engine.close()
        raise
    return engine
