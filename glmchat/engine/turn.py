"""One turn on a loaded model: encode, prefill, decode, parse, report.

torch comes in with the LoadedModel; this module imports none of it.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ContextFullError, TemplateError
from ..events import (
    Event,
    FinishReason,
    PrefillProgress,
    PromptReady,
    ThinkingDelta,
    ThinkingDone,
    Timing,
    TurnDone,
    Usage,
)
from ..glm.checkpoints import Checkpoint
from ..glm.encode import LONG, Prompt, PromptEncoder
from ..glm.parser import OutputParser
from ..messages import Message
from .base import GenerationOptions, check_fits
from .decode import Decoder, Decoding
from .detokenize import Detokenizer
from .faults import forget_frames
from .loaded import LoadedModel
from .outbox import Outbox
from .sampling import Sampler
from .todo import Todo

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Result = TypeVar("Result")

LOOK_S = 0.05
"""How often a turn that is made tokens of looks whether it was cancelled."""


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One request: its messages and options, and where its events go. `started` is a perf_counter time."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    options: GenerationOptions
    cancelled: Callable[[], bool]
    outbox: Outbox
    started: float

    @property
    def long(self) -> bool:
        """Whether to make tokens of it takes long."""
        return sum(len(m.content) for m in self.messages) > LONG


@dataclass(frozen=True, slots=True)
class Ahead:
    """What the next turn will be, but that the text of its last message may go on."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    options: GenerationOptions

    def reads_all_of(self, turn: Turn) -> bool:
        """Whether the turn's prompt is the same."""
        thinks = self.options.enable_thinking == turn.options.enable_thinking
        return thinks and (self.messages, self.tools) == (turn.messages, turn.tools)


class TurnRunner:
    """Runs turns one after the other on a loaded model; the KV cache lives on from turn to turn."""

    def __init__(self, checkpoint: Checkpoint, encoder: PromptEncoder, loaded: LoadedModel) -> None:
        self._checkpoint = checkpoint
        self._encoder = encoder
        self._loaded = loaded
        self._decoder = Decoder(loaded)

    def run(self, turn: Turn) -> None:
        """Put the turn's events into its outbox, the last a TurnDone.

        Raises: ContextFullError, TemplateError, and whatever torch raises. The runner stays usable.
        """
        prompt = _unless(turn.cancelled, lambda: self._prompt(turn)) if turn.long else self._prompt(turn)
        if prompt is None:
            turn.outbox.put(TurnDone(Message("assistant", "", interrupted=True), "interrupted"))
            return
        room = self._room(len(prompt.ids))
        limit = turn.options.max_tokens
        budget = room if limit is None else limit if room is None else min(room, limit)
        answer = Answer(turn, self._checkpoint.tokenizer, thinking_open=prompt.thinking_open)
        try:
            with self._loaded.inference():
                decoding, reason = self._decode(turn, prompt.ids, answer, budget)
        except Exception as e:
            forget_frames(e)  # which hold the KV cache
            self._loaded.free_memory()
            raise
        if reason == "length" and budget != limit:
            reason = "context"
        answer.finish(reason, prompt_tokens=len(prompt.ids), decoding=decoding)

    def read_ahead(self, ahead: Ahead, todo: Todo[Any, Ahead]) -> None:
        """Prefill a turn before it is asked for; most of it is in the cache already, and what then turns out
        otherwise is cut off again.

        The template drops the reasoning of the turn before once another question follows, so all that comes
        after it has to be computed again. It ends at once for what there is `todo`, for another hint only
        after it has come forward: there may be one before each chunk. A turn that asks for the same waits for
        the last chunk, which it would have to begin anew.

        Not where weights are offloaded: a forward there takes as long for one token as for thousands; nor
        where nothing of it could be used.
        """
        if self._loaded.offloaded or not self._decoder.reuses:
            return
        prompt = self._prompt(ahead).ids
        self._room(len(prompt))  # raises where there is none
        same = functools.cache(ahead.reads_all_of)

        def awaits_it(job: object) -> bool:
            last = len(prompt) - len(decoding.branch.ids) <= self._decoder.chunk_ahead
            return last and isinstance(job, Turn) and not job.cancelled() and same(job)

        def cancelled() -> bool:
            return todo.presses(but=awaits_it)

        with self._loaded.inference():
            decoding = self._decoder.begin(prompt)
            for _ in decoding.prefill(cancelled, chunk=self._decoder.chunk_ahead):
                if todo.waits():
                    break
            decoding.keep(settled=not cancelled())

    def render(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], options: GenerationOptions
    ) -> Prompt:
        """What the model reads; touches no tensors, so any thread may call it."""
        return self._encoder.encode(
            messages,
            tools,
            enable_thinking=options.enable_thinking,
            add_generation_prompt=not messages or messages[-1].role != "assistant",
        )

    def lend(self, job: Callable[[Decoder, Checkpoint], Result]) -> Result:
        """What `job` makes of the decoder and the checkpoint, in the context in which turns run."""
        with self._loaded.inference():
            return job(self._decoder, self._checkpoint)

    def page_more(self) -> bool:
        """Put more of the weights onto huge pages; takes milliseconds. False: there is nothing left."""
        return self._loaded.page_more()

    def compile_more(self) -> bool:
        """Compile the next part of the decode step, if there is one; takes some seconds."""
        return self._loaded.compile_more()

    def close(self) -> None:
        """Free the KV cache and what loading left on disk."""
        self._decoder.prefixes.drop()
        self._loaded.compiled = None  # it refers back
        self._loaded.close()

    def _prompt(self, wanted: Turn | Ahead) -> Prompt:
        """What is to be computed. Raises ContextFullError or TemplateError: it cannot be."""
        size = sum(len(m.content.encode("utf-8", "replace")) for m in wanted.messages)
        check_fits(size, self._checkpoint.name, self._checkpoint.context_length)
        prompt = self.render(wanted.messages, wanted.tools, wanted.options)
        if not prompt.ids:
            raise TemplateError(
                f"The chat template of {self._checkpoint.name} made nothing of the conversation; fetch the "
                "checkpoint again or give another --chat-template."
            )
        return prompt

    def _room(self, prompt_tokens: int) -> int | None:
        """How many tokens may still be written; None when the checkpoint states no context length."""
        context = self._checkpoint.context_length
        if not context:
            return None
        if prompt_tokens >= context:
            raise ContextFullError(
                f"The conversation is {prompt_tokens:,} tokens long and the context of "
                f"{self._checkpoint.name} holds {context:,}; shorten it or start a new one."
            )
        return context - prompt_tokens

    def _decode(
        self, turn: Turn, prompt: list[int], answer: Answer, budget: int | None
    ) -> tuple[Decoding, FinishReason]:
        """Prefill what the cache lacks, then decode. What was decoded, and why it ended."""
        loaded, eos, cancelled = self._loaded, self._checkpoint.eos_token_ids, turn.cancelled
        sample = Sampler(
            self._checkpoint.sampling,
            turn.options,
            lambda device: loaded.generator(turn.options.seed, device),
        )
        decoding = self._decoder.begin(prompt, guess=not sample.needs_history)
        turn.outbox.put(PromptReady(len(prompt), decoding.cached))
        reason: FinishReason = "interrupted"
        for done in decoding.prefill(cancelled):
            turn.outbox.put(PrefillProgress(done, len(prompt)))
            turn.outbox.flush()
        if budget is not None and budget <= 0:
            reason = "length"
        elif len(decoding.branch.ids) == len(prompt):
            with loaded.decoding():
                for token_id in decoding.tokens(sample, budget):
                    if token_id in eos:
                        answer.stop_token()
                        reason = "stop"
                        break
                    answer.token(token_id)
                    if answer.tokens == budget:
                        reason = "length"
                        break
                    if cancelled():
                        break
        decoding.keep()
        return decoding, reason


def _unless(cancelled: Callable[[], bool], work: Callable[[], Result]) -> Result | None:
    """What `work` comes to; None once it is cancelled: then it goes on for nobody, in a thread of its own,
    since in a library nothing can be stopped."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as e:
            future.set_exception(e)

    threading.Thread(target=run, name="glmchat-encoder", daemon=True).start()
    while not cancelled():
        if wait([future], LOOK_S).done:
            return future.result()
    return None


class Answer:
    """What the model writes in one turn: ids in, events out, and the counts and times for TurnDone."""

    def __init__(self, turn: Turn, tokenizer: Tokenizer, *, thinking_open: bool) -> None:
        self.tokens = 0
        self._outbox = turn.outbox
        self._parser = OutputParser(turn.tools, thinking_open=thinking_open)
        self._detokenizer = Detokenizer(tokenizer)
        self._started = turn.started
        self._first_at = self._last_at = turn.started
        self._thinking_at: float | None = None
        self._reasoning_tokens = 0

    def token(self, token_id: int) -> None:
        """One more token of the answer."""
        self._count()
        was_thinking = self._parser.thinking
        text = self._detokenizer.feed(token_id)
        events = self._parser.feed(text) if text else []
        if self._parser.thinking:
            if self._thinking_at is None:
                self._thinking_at = self._last_at
            if was_thinking:  # neither of the tags counts
                self._reasoning_tokens += 1
        if events:
            self._put(events)

    def stop_token(self) -> None:
        """The token that ends the turn: it counts but has no text."""
        self._count()

    def finish(self, reason: FinishReason, *, prompt_tokens: int, decoding: Decoding) -> None:
        """Close what is open and put the TurnDone."""
        self._put(self._parser.flush())
        result = self._parser.result
        if reason == "stop" and result.tool_calls:
            reason = "tool_calls"
        message = Message(
            "assistant",
            result.content or "",
            reasoning_content=result.reasoning or "",
            tool_calls=result.tool_calls,
            interrupted=reason == "interrupted",
        )
        usage = Usage(
            prompt_tokens,
            decoding.cached,
            self.tokens,
            self._reasoning_tokens,
            drafted_tokens=decoding.guessed,
            accepted_tokens=decoding.accepted,
        )
        decoding_s = self._last_at - self._first_at
        timing = Timing(
            ttft_s=self._first_at - self._started if self.tokens else None,
            decode_tokens_per_s=(self.tokens - 1) / decoding_s if decoding_s else None,
            total_s=time.perf_counter() - self._started,
        )
        self._outbox.put(TurnDone(message, reason, usage, timing))

    def _count(self) -> None:
        self.tokens += 1
        self._last_at = time.perf_counter()
        if self.tokens == 1:
            self._first_at = self._last_at

    def _put(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, ThinkingDelta):
                event = replace(event, tokens=self._reasoning_tokens)
            elif isinstance(event, ThinkingDone):
                seconds = self._last_at - (self._thinking_at or self._last_at)
                event = replace(event, seconds=seconds, tokens=self._reasoning_tokens)
            self._outbox.put(event)
