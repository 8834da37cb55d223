"""What a turn looks like, as a pure function of its events.

`Transcript.feed` takes one event and returns the entries that became final; `open` is the one that may
still change. Entries are plain values with sanitised text; how they are drawn is `screen`'s affair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..events import (
    AnswerDelta,
    Event,
    LoadProgress,
    PrefillProgress,
    PromptReady,
    RoundDone,
    ThinkingDelta,
    ThinkingDone,
    ToolCallBroken,
    ToolCallReady,
    ToolDone,
    ToolOutput,
    ToolServerFailed,
    ToolServersStarting,
    ToolStarted,
    TurnDone,
    TurnsDropped,
)
from ..messages import ToolCall
from .blocks import BlockSplitter
from .sanitize import Sanitizer, sanitize
from .wording import (
    arguments_text,
    call_text,
    dropped_text,
    outcome_text,
    result_text,
    server_text,
    stats_text,
    stopped_text,
    thought_text,
)


@dataclass(frozen=True, slots=True)
class Reading:
    """The prompt is being prefilled."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Thought:
    """A think block."""

    text: str
    summary: str


@dataclass(frozen=True, slots=True)
class Thinking:
    """A think block that is being written: its newest text, and how many tokens it has."""

    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call: on one line, its arguments in full, what became of it, and the result."""

    summary: str
    arguments: str
    outcome: str = "not run"
    result: str = ""
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Running:
    """The calls of this round that have no result yet, each with its newest line of output."""

    calls: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """Markdown source of one block of the answer, or of what is open of it."""

    source: str


@dataclass(frozen=True, slots=True)
class Note:
    """A line about the turn, or what the program says."""

    text: str
    tone: Literal["plain", "quiet", "warning", "fault"] = "quiet"


@dataclass(frozen=True, slots=True)
class Said:
    """What the person typed."""

    text: str


Entry: TypeAlias = Thought | Call | Answer | Note | Said
"""What is final."""
Open: TypeAlias = LoadProgress | ToolServersStarting | Reading | Thinking | Running | Answer
"""What may still change."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """A call that has no result yet."""

    call: ToolCall
    running: bool = False
    line: str = ""

    @property
    def summary(self) -> str:
        return sanitize(call_text(self.call))


_NEWEST = 20_000
"""Characters of an open thought, enough for any screen."""


class Transcript:
    """One turn."""

    def __init__(self) -> None:
        self._thought: list[str] = []
        self._thinking: Thinking | None = None
        self._reading: LoadProgress | ToolServersStarting | Reading | None = None
        self._calls: list[_Waiting] = []
        self._clean = Sanitizer()
        self._blocks = BlockSplitter()

    @property
    def open(self) -> Open | None:
        if self._thinking is not None:
            return self._thinking
        if self._blocks.open.strip():
            return Answer(self._blocks.open)
        if running := tuple((w.summary, w.line) for w in self._calls if w.running):
            return Running(running)
        return self._reading

    def feed(self, event: Event) -> list[Entry]:
        match event:
            case LoadProgress() | ToolServersStarting():
                self._reading = event
            case ToolServerFailed():
                return [Note(sanitize(server_text(event)), "warning")]
            case PromptReady(prompt_tokens, cached_tokens):
                self._reading = Reading(cached_tokens, prompt_tokens)
            case PrefillProgress(done, total):
                self._reading = Reading(done, total)
            case TurnsDropped(turns):
                return [Note(dropped_text(turns), "warning")]
            case ThinkingDelta(text, tokens):
                self._reading = None
                self._thought.append(self._clean.feed(text))
                before = self._thinking.text if self._thinking else ""
                self._thinking = Thinking((before + self._thought[-1])[-_NEWEST:], tokens)
            case ThinkingDone():
                return self._end_thought(thought_text(event))
            case AnswerDelta(text):
                self._reading = None
                return [*self._end_thought(), *map(Answer, self._blocks.feed(self._clean.feed(text)))]
            case ToolCallReady(call):
                self._calls.append(_Waiting(call))
                return self._end_text()
            case ToolStarted(call):
                self._waiting(call).running = True
            case ToolOutput(call_id, line):
                for waiting in self._calls:
                    if waiting.call.id == call_id:
                        waiting.line = sanitize(line)
            case ToolDone():
                return [self._call(event)]
            case RoundDone():
                return self._end_text()
            case ToolCallBroken(raw):
                said = Note(f"a broken tool call, not run: {sanitize(raw).strip()}", "warning")
                return [*self.flush(), said]
            case TurnDone():
                return [*self.flush(), *self._ending(event)]
        return []

    def flush(self) -> list[Entry]:
        """What is open, made final."""
        not_run = [Call(w.summary, sanitize(arguments_text(w.call))) for w in self._calls]
        self._calls.clear()
        return [*self._end_text(), *not_run]

    def _end_text(self) -> list[Entry]:
        self._reading = None
        if self._thinking is not None:
            return self._end_thought()
        rest = self._blocks.feed(self._clean.flush()) + self._blocks.flush()
        return [Answer(source) for source in rest]

    def _waiting(self, call: ToolCall) -> _Waiting:
        """What stands for this call, which has its id by now, and perhaps other arguments."""
        for waiting in self._calls:
            if waiting.call.id == call.id or (not waiting.call.id and waiting.call.name == call.name):
                waiting.call = call
                return waiting
        self._calls.append(_Waiting(call))
        return self._calls[-1]

    def _call(self, done: ToolDone) -> Call:
        waiting = self._waiting(done.call)
        self._calls.remove(waiting)
        return Call(
            waiting.summary,
            sanitize(arguments_text(done.call)),
            sanitize(outcome_text(done)),
            sanitize(result_text(done)),
            failed=not done.ok,
        )

    def _end_thought(self, summary: str = "Thought, unfinished") -> list[Entry]:
        """Fold the open think block; without its ThinkingDone nobody knows how long it took."""
        if self._thinking is None:
            return []
        text = ("".join(self._thought) + self._clean.flush()).strip()
        self._thought, self._thinking = [], None
        return [Thought(text, summary)] if text else []

    def _ending(self, done: TurnDone) -> list[Entry]:
        entries: list[Entry] = []
        if done.finish_reason == "interrupted":
            entries.append(Note("stopped", "warning"))
        elif text := stopped_text(done.finish_reason):
            entries.append(Note(text, "warning"))
        if done.usage.completion_tokens:
            entries.append(Note(stats_text(done)))
        return entries
