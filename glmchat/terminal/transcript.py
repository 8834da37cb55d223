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
    PrefillProgress,
    PromptReady,
    ThinkingDelta,
    ThinkingDone,
    ToolCallBroken,
    ToolCallReady,
    TurnDone,
    TurnsDropped,
)
from .markdown import BlockSplitter
from .sanitize import Sanitizer, sanitize
from .wording import call_text, dropped_text, stats_text, stopped_text, thought_text


@dataclass(frozen=True, slots=True)
class Reading:
    """The prompt is being prefilled."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Thought:
    """A think block. `summary` is "" while it is still open."""

    text: str
    summary: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """Markdown source of one block of the answer, or of what is open of it."""

    source: str


@dataclass(frozen=True, slots=True)
class Note:
    """One line about the turn."""

    text: str
    tone: Literal["quiet", "call", "warning"] = "quiet"


Entry: TypeAlias = Reading | Thought | Answer | Note


class Transcript:
    """One turn. `thought` is its think block as far as it came, for who wants to unfold it."""

    def __init__(self) -> None:
        self.thought = ""
        self._thinking = False
        self._reading: Reading | None = None
        self._clean = Sanitizer()
        self._blocks = BlockSplitter()

    @property
    def open(self) -> Entry | None:
        if self._thinking:
            return Thought(self.thought.strip())
        if self._blocks.open.strip():
            return Answer(self._blocks.open)
        return self._reading

    def feed(self, event: Event) -> list[Entry]:
        match event:
            case PromptReady(prompt_tokens, cached_tokens):
                self._reading = Reading(cached_tokens, prompt_tokens)
            case PrefillProgress(done, total):
                self._reading = Reading(done, total)
            case TurnsDropped(turns):
                return [Note(dropped_text(turns), "warning")]
            case ThinkingDelta(text):
                self._reading, self._thinking = None, True
                self.thought += self._clean.feed(text)
            case ThinkingDone(seconds, tokens):
                return self._end_thought(thought_text(seconds, tokens))
            case AnswerDelta(text):
                self._reading = None
                return [*self._end_thought(), *map(Answer, self._blocks.feed(self._clean.feed(text)))]
            case ToolCallReady(call):
                said = Note(f"{sanitize(call_text(call))}, not run", "call")
                return [*self.flush(), said]
            case ToolCallBroken(raw):
                said = Note(f"a broken tool call, not run: {sanitize(raw).strip()}", "warning")
                return [*self.flush(), said]
            case TurnDone():
                return [*self.flush(), *self._ending(event)]
        return []

    def flush(self) -> list[Entry]:
        """What is open, made final."""
        self._reading = None
        if self._thinking:
            return self._end_thought()
        rest = self._blocks.feed(self._clean.flush()) + self._blocks.flush()
        return [Answer(source) for source in rest]

    def _end_thought(self, summary: str = "Thought, unfinished") -> list[Entry]:
        """Fold the open think block; without its ThinkingDone nobody knows how long it took."""
        if not self._thinking:
            return []
        self._thinking = False
        self.thought = (self.thought + self._clean.flush()).strip()
        return [Thought(self.thought, summary)] if self.thought else []

    def _ending(self, done: TurnDone) -> list[Entry]:
        entries: list[Entry] = []
        if done.finish_reason == "interrupted":
            entries.append(Note("stopped", "warning"))
        elif text := stopped_text(done.finish_reason):
            entries.append(Note(text, "warning"))
        if done.usage.completion_tokens:
            entries.append(Note(stats_text(done)))
        return entries
