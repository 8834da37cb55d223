"""The turn loop: a user message goes to the engine, its events come back, the conversation grows.

What is stored, whatever happens:
- an answer that ends by itself: the engine's message, with reasoning and tool calls;
- an answer that the person stops (`cancel`, closing the iterator, Ctrl-C): what came so far, marked
  `interrupted`; if nothing came, the user message is taken back as well;
- a fault in the midst of an answer: what came so far, marked `interrupted`;
- a fault before: the user message is taken back, so that the same `send` can be tried again. Where tools
  have run, all that came before the fault is kept: nobody wants them run twice.

Calls of tools that can be run are checked, allowed or not, and run side by side; their results go back to
the model, round after round, until it answers. Calls of tools that cannot are left to the caller.

When the context is full the oldest exchanges are no longer sent, but stay in the conversation. An exchange
is a question and all that came of it; so never half of one is sent, and the system message always is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .engine.base import Engine, GenerationOptions
from .errors import ContextFullError, ConversationError
from .events import (
    AnswerDelta,
    Event,
    FinishReason,
    PromptReady,
    RoundDone,
    ThinkingDelta,
    ToolCallReady,
    ToolDone,
    TurnDone,
    TurnsDropped,
    sum_timing,
    sum_usage,
)
from .messages import Conversation, Message, ToolCall
from .tools.approve import Approvals
from .tools.calls import Repeats, run_calls
from .tools.declare import Declarations, Tool
from .tools.toolbox import Toolbox

if TYPE_CHECKING:
    from .glm.encode import Prompt

NOT_RUN = "This call was not run."
MOST_ROUNDS = 25
"""Rounds of tool calls in one turn."""
MOST_ROOM = 4096
"""Tokens kept free for an answer, where the context is large; in a small one an eighth of it."""


class Chat:
    """A conversation with an engine. `send` yields the events of one turn and stores its messages.

    `options` may be replaced between turns. One turn at a time; `cancel` may come from any thread.
    Without `drop_oldest` a full context is a ContextFullError.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        system: str | None = None,
        tools: Sequence[dict[str, Any] | Tool] | Toolbox = (),
        options: GenerationOptions | None = None,
        conversation: Conversation | None = None,
        drop_oldest: bool = True,
        approvals: Approvals | None = None,
        max_tool_rounds: int = MOST_ROUNDS,
    ) -> None:
        self.engine = engine
        self.drop_oldest = drop_oldest
        self.dropped_turns = 0
        """How many of the oldest exchanges are no longer sent."""
        self.toolbox = tools if isinstance(tools, Toolbox) else _fixed(tools)
        """Tools with a `run` are run, if `approvals` allows it; of the others the calls are only told."""
        self.approvals = approvals or Approvals()
        self.max_tool_rounds = max_tool_rounds
        self.options = options or GenerationOptions()
        self.conversation = Conversation() if conversation is None else conversation
        self._cancel = threading.Event()
        if system is not None:
            if len(self.conversation):
                raise ConversationError("Give the system message in `conversation`, which is not empty.")
            self.conversation.append(Message("system", system))

    @classmethod
    def from_model(
        cls,
        model: str = "demo",
        *,
        system: str | None = None,
        tools: Sequence[dict[str, Any] | Tool] = (),
        options: GenerationOptions | None = None,
        chat_template: str = "auto",
        **load: Any,
    ) -> Chat:
        """A Chat with a model of this process: `demo`, a hub name or a folder; waits until it is loaded.

        `load` takes the fields of LoadOptions: device_map, dtype, offline … With `parallel` the model runs in
        processes of its own.
        """
        from .engine.local import open_local
        from .engine.memory import LoadOptions
        from .engine.worker import open_worker

        placed = LoadOptions(**load)
        make: Callable[..., Engine] = open_local if placed.parallel == "off" else open_worker
        engine = make(model, placed, chat_template=chat_template)
        return cls(engine, system=system, tools=tools, options=options)

    def send(self, text: str) -> Generator[Event, None, None]:
        """Ask, and yield the turn's events; the last is a TurnDone whose message is the stored one.

        Calls of the turn before that nobody answered are answered first, as not run.
        Raises what the engine raises; if nothing was answered, after taking the user message back.
        """
        conversation = self.conversation
        before = _append_question(conversation, text)
        # A new one for each turn: clearing one can deadlock with a signal handler that sets it.
        self._cancel = cancel = threading.Event()
        dropped = self.dropped_turns
        rounds: list[TurnDone] = []
        repeats = Repeats()
        while True:
            partial = _Partial()
            begins = len(conversation) if rounds else before
            answered = False
            try:
                for event in self._generate(cancel):
                    partial.add(event)
                    if not isinstance(event, TurnDone):
                        yield event
                        continue
                    done = replace(event, message=self._store(event.message, begins))
                    answered = True
                    rounds.append(done)
                    if not self._runs(done):
                        yield self._whole(rounds, done.finish_reason, before)
            except (GeneratorExit, KeyboardInterrupt):
                cancel.set()
                if not answered:
                    self._store(partial.message(), begins)
                raise
            except BaseException:
                if not answered and partial.begun:
                    self._store(partial.message(), begins)
                elif not answered and not rounds:
                    conversation.truncate(before)
                    self.dropped_turns = dropped
                raise
            if not rounds or not self._runs(rounds[-1]):
                return
            done = rounds[-1]
            yield RoundDone(done.message, done.usage, done.timing)
            within = len(rounds) < self.max_tool_rounds and not repeats.add(done.message.tool_calls)
            yield from self._answer_calls(done.message.tool_calls, cancel, run=within)
            if cancel.is_set() or not within:
                yield self._whole(rounds, "interrupted" if cancel.is_set() else "tool_limit", before)
                return

    def cancel(self) -> None:
        """End the running turn soon; `send` then yields its TurnDone with what came so far."""
        self._cancel.set()

    def clear(self) -> None:
        """Start over; the system message stays."""
        self.conversation.clear()
        self.dropped_turns = 0

    def undo(self) -> str | None:
        """Take back the newest question and all that came of it. Returns its text; None: there was none."""
        messages = self.conversation.messages
        for at in range(len(messages) - 1, -1, -1):
            if messages[at].role == "user":
                self.conversation.truncate(at)
                left = sum(message.role == "user" for message in self.conversation)
                self.dropped_turns = min(self.dropped_turns, left)
                return messages[at].content
        return None

    def render(self, question: str | None = None) -> Prompt | None:
        """The conversation as the model reads it, or as it would with this question at its end.

        None where a server renders it out of sight.
        """
        conversation = self.visible.copy()
        if question is not None:
            _append_question(conversation, question)
        return self.engine.render(conversation, tools=self._declarations, options=self.options)

    def prepare(self, begun: str = "") -> None:
        """Let the engine read ahead what comes before the next message, and what was `begun` of it already.

        Returns at once.
        """
        conversation = self.visible.copy()
        _append_question(conversation, begun or "…")
        self.engine.prepare(conversation, tools=self._declarations, options=self.options)

    @property
    def visible(self) -> Conversation:
        """What the model sees of the conversation: all but the exchanges that were dropped."""
        messages = self.conversation.messages
        questions = [at for at, message in enumerate(messages) if message.role == "user"]
        dropped = min(self.dropped_turns, len(questions) - 1)
        if dropped <= 0:
            return self.conversation
        system = [m for m in messages[:1] if m.role == "system"]
        return Conversation([*system, *messages[questions[dropped] :]])

    @property
    def tools(self) -> tuple[Tool, ...]:
        """What the model may call now."""
        return self.toolbox.active

    @property
    def _declarations(self) -> tuple[dict[str, Any], ...]:
        return tuple(dict(tool.declaration) for tool in self.tools)

    def close(self) -> None:
        """Close the engine and end the tool servers."""
        self.engine.close()
        self.toolbox.close()

    def __enter__(self) -> Chat:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _runs(self, done: TurnDone) -> bool:
        """Whether the round goes on with its calls: each is of a tool that can be run, or of none at all."""
        shown_only = {tool.name for tool in self.tools if tool.run is None}
        return (
            done.finish_reason == "tool_calls"
            and any(tool.run for tool in self.tools)
            and not any(call.name in shown_only for call in done.message.tool_calls)
        )

    def _answer_calls(
        self, calls: Sequence[ToolCall], cancel: threading.Event, *, run: bool
    ) -> Generator[Event, None, None]:
        """A result for each call, whatever happens; the conversation is well-formed afterwards."""
        results: dict[str, ToolDone] = {}
        try:
            if run:
                for event in run_calls(calls, self.tools, self.approvals, cancel):
                    if isinstance(event, ToolDone):
                        results[event.call.id] = event
                    yield event
        finally:
            for call in calls:
                text = results[call.id].text if call.id in results else NOT_RUN
                self.conversation.append(Message("tool", text, tool_call_id=call.id))

    def _whole(self, rounds: list[TurnDone], reason: FinishReason, before: int) -> TurnDone:
        """The turn of these rounds."""
        newest = rounds[-1]
        used = newest.usage.prompt_tokens + newest.usage.completion_tokens
        return replace(
            newest,
            finish_reason=reason,
            usage=sum_usage([r.usage for r in rounds]),
            timing=sum_timing(rounds),
            messages=self.conversation.messages[before + 1 :],
            context_tokens=used,
        )

    def _generate(self, cancel: threading.Event) -> Generator[Event, None, None]:
        """The engine's events; while the prompt leaves too little room, of ever fewer exchanges."""
        yield from self.toolbox.wait(cancel.is_set)
        while True:
            turn = self.engine.generate(
                self.visible, tools=self._declarations, options=self.options, cancel=cancel
            )
            dropped = 0
            with closing(turn):
                try:
                    for event in turn:
                        if isinstance(event, PromptReady) and not self._leaves_room(event):
                            dropped = self._drop_oldest()
                            if dropped:
                                break
                        yield event
                except ContextFullError:
                    dropped = self._drop_oldest()
                    if not dropped:
                        raise
            if not dropped:
                return
            yield TurnsDropped(dropped)

    def _leaves_room(self, ready: PromptReady) -> bool:
        """Whether an answer of fair length still fits behind the prompt."""
        context = self.engine.info.context_length
        wanted = min(context // 8, MOST_ROOM, self.options.max_tokens or MOST_ROOM)
        return not context or context - ready.prompt_tokens >= wanted

    def _drop_oldest(self) -> int:
        """Drop exchanges, at least one, until a quarter of the context is free: each time the beginning of
        the prompt changes all of it has to be prefilled, so that should be seldom. Returns how many."""
        if not self.drop_oldest:
            return 0
        most = sum(message.role == "user" for message in self.conversation) - 1
        before = self.dropped_turns
        while self.dropped_turns < most:
            self.dropped_turns += 1
            prompt = self.render()
            if prompt is None or len(prompt.ids) <= self.engine.info.context_length * 3 // 4:
                break
        return self.dropped_turns - before

    def _store(self, message: Message, before: int) -> Message:
        if message.interrupted and not (message.content or message.reasoning_content or message.tool_calls):
            self.conversation.truncate(before)
            return message
        return self.conversation.append(message)


def _fixed(tools: Sequence[dict[str, Any] | Tool]) -> Toolbox:
    declared = Declarations(tuple(t if isinstance(t, Tool) else Tool(t) for t in tools))
    return Toolbox(lambda: declared)


def _append_question(conversation: Conversation, text: str) -> int:
    """Append a user message, after a result for each open call; returns its place."""
    for call in conversation.unanswered:
        conversation.append(Message("tool", NOT_RUN, tool_call_id=call.id))
    conversation.append(Message("user", text))
    return len(conversation) - 1


class _Partial:
    """What a turn gave so far, should it end before its TurnDone."""

    def __init__(self) -> None:
        self._thinking: list[str] = []
        self._answer: list[str] = []
        self._calls: list[ToolCall] = []

    def add(self, event: Event) -> None:
        if isinstance(event, ThinkingDelta):
            self._thinking.append(event.text)
        elif isinstance(event, AnswerDelta):
            self._answer.append(event.text)
        elif isinstance(event, ToolCallReady):
            self._calls.append(event.call)

    @property
    def begun(self) -> bool:
        return bool(self._thinking or self._answer or self._calls)

    def message(self) -> Message:
        return Message(
            "assistant",
            _join(self._answer),
            reasoning_content=_join(self._thinking),
            tool_calls=tuple(self._calls),
            interrupted=True,
        )


def _join(parts: Iterable[str]) -> str:
    return "".join(parts).strip()
