r"""Model output becomes thinking, answer and tool calls, as it streams in, however it is cut.

    <think>reasoning</think>answer<tool_call>name<arg_key>k</arg_key><arg_value>v</arg_value></tool_call>

GLM-4.5 opens the think block itself and puts line breaks between the tags of a call; the prompt of GLM-4.7
opens it, and its calls are compact. Models of other kinds write a think block, or none, the same way.

- `<think>` opens the block only at the very start, and only `</arg_value>` ends a value.
- A call inside the think block is a draft, and reasoning, if `</think>` follows; where the model never
  closes the block, it is a call. So what follows it is held back until that is decided.
- A `<tool_call>` that no tool name follows (prose, calls in JSON) is text.
- A call that breaks its form, has no name or never ends is reported as broken, never as a call.

Tags are recognised in the text, as the parsers of inference servers do: a model that spells a tag in
ordinary tokens has written the tag. Whether a call may run is for approval to decide, not for its spelling.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, TypeAlias

from ..events import AnswerDelta, ThinkingDelta, ThinkingDone, ToolCallBroken, ToolCallReady
from ..messages import ToolCall
from .arguments import ArgumentTypes

_THINK, _THINK_END = "<think>", "</think>"
_CALL, _CALL_END = "<tool_call>", "</tool_call>"
_KEY, _KEY_END, _VALUE, _VALUE_END = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"

STOP_TOKENS = ("<|endoftext|>", "<|user|>", "<|observation|>")
"""Tokens that end a turn; one that an output ends in is taken off."""

_SPACE = re.compile(r"\s*")
_GAP = re.compile(r"(?:\s|\\n)*")  # some models write a line break as backslash and n
_NAME = re.compile(_GAP.pattern + r"""([^\s<>(){}\[\]"'`,;\\]*)""" + _GAP.pattern)
_NAME_LIMIT = 256  # characters, white space included; beyond, it is prose
_LONGEST = 16  # more characters than any tag or stop token has

ParserEvent: TypeAlias = ThinkingDelta | ThinkingDone | AnswerDelta | ToolCallReady | ToolCallBroken


@dataclass(frozen=True, slots=True)
class ParsedOutput:
    """What a model wrote. Texts are stripped, None when empty; the `_raw` ones are as they stood.

    `reasoning_raw` is None when there was no think block. `incomplete_tool_call` is the text behind the
    `<tool_call>` of a call that never ended, `malformed_tool_calls` that of calls without name or form.
    """

    reasoning: str | None
    content: str | None
    tool_calls: tuple[ToolCall, ...]
    unclosed_think: bool
    reasoning_raw: str | None
    content_raw: str
    stop_token: str | None
    incomplete_tool_call: str | None = None
    malformed_tool_calls: tuple[str, ...] = ()


def parse_output(
    text: str, *, tools: Sequence[Mapping[str, Any]] | None = None, thinking_open: bool = False
) -> ParsedOutput:
    """Parse a whole output. `tools` type the arguments; `thinking_open`: the prompt opened `<think>`."""
    parser = OutputParser(tools, thinking_open)
    parser.feed(text)
    parser.flush()
    return parser.result


class _State(Enum):
    """Where in the output the parser is."""

    START = auto()  # nothing but white space so far
    THINKING = auto()
    DRAFT_NAME = auto()  # behind a <tool_call> in the think block
    DRAFT = auto()  # behind a drafted call's name, up to </think>
    ANSWER = auto()
    NAME = auto()  # behind a <tool_call> in the answer
    ARGUMENTS = auto()  # in a call, outside key and value
    KEY = auto()
    PAIR = auto()  # between a key and its value
    VALUE = auto()


_TAGS = {
    _State.THINKING: (_THINK_END, _CALL),
    _State.DRAFT: (_THINK_END,),
    _State.ANSWER: (_CALL,),
    _State.ARGUMENTS: (_KEY, _CALL_END),
    _State.KEY: (_KEY_END, _CALL_END),
    _State.PAIR: (_VALUE, _CALL_END),
    _State.VALUE: (_VALUE_END,),
}
"""The tags that mean something in a state; all else there is text."""
_TAG = {state: re.compile("|".join(tags)) for state, tags in _TAGS.items()}
_AFTER = {_KEY: _State.KEY, _KEY_END: _State.PAIR, _VALUE: _State.VALUE, _VALUE_END: _State.ARGUMENTS}


class OutputParser:
    """Parses an output piece by piece. `feed` and `flush` give events that later text cannot change.

    The texts of all ThinkingDeltas, and of all AnswerDeltas, join to the stripped ones of `result`. A
    ThinkingDone follows the last ThinkingDelta; its seconds and tokens are 0, for the engine to fill in.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None = None, thinking_open: bool = False) -> None:
        self._types = ArgumentTypes(tools)
        self._thinking_open = thinking_open
        self._state = _State.START
        self._tail = ""  # the end of the text so far, while it may turn out to be a tag
        self._held: list[str] = []  # text of START or DRAFT, whose kind is still open
        self._events: list[ParserEvent] = []
        self._reasoning = _Text()
        self._answer = _Text()
        self._call = _Call("")
        self._calls: list[ToolCall] = []
        self._malformed: list[str] = []
        self._incomplete: str | None = None
        self._thought = thinking_open
        self._unclosed_think = False
        self._stop_token: str | None = None

    @property
    def thinking(self) -> bool:
        """Whether the text so far ends inside the think block."""
        if self._state is _State.START:
            return self._thinking_open
        return self._state in (_State.THINKING, _State.DRAFT_NAME, _State.DRAFT)

    @property
    def result(self) -> ParsedOutput:
        """What is decided so far; after `flush`, all."""
        reasoning, content = self._reasoning.raw, self._answer.raw
        return ParsedOutput(
            reasoning=reasoning.strip() or None,
            content=content.strip() or None,
            tool_calls=tuple(self._calls),
            unclosed_think=self._unclosed_think,
            reasoning_raw=reasoning if self._thought else None,
            content_raw=content,
            stop_token=self._stop_token,
            incomplete_tool_call=self._incomplete,
            malformed_tool_calls=tuple(self._malformed),
        )

    def feed(self, text: str) -> list[ParserEvent]:
        """Take more of the output."""
        self._run(self._tail + text)
        return self._take_events()

    def flush(self) -> list[ParserEvent]:
        """The output is over: decide what was held back."""
        self._stop_token = next((t for t in STOP_TOKENS if self._tail.endswith(t)), self._stop_token)
        self._tail = self._tail.removesuffix(self._stop_token or "")
        self._end()
        return self._take_events()

    def _take_events(self) -> list[ParserEvent]:
        events, self._events = self._events, []
        return events

    def _run(self, text: str) -> None:
        """Go from tag to tag; what cannot be decided yet becomes the tail."""
        at: int | None = 0
        while at is not None:
            if self._state is _State.START:
                at = self._start(text, at)
            elif self._state in (_State.NAME, _State.DRAFT_NAME):
                at = self._name(text, at)
            elif tag := _TAG[self._state].search(text, at):
                self._text(text[at : tag.start()])
                self._step(tag[0])
                at = tag.end()
            else:
                end = _undecided(text, at, (*_TAGS[self._state], *STOP_TOKENS))
                self._text(text[at:end])
                self._tail = text[end:]
                at = None

    def _start(self, text: str, at: int) -> int | None:
        """Before anything but white space, where alone `<think>` opens the block."""
        begin = _end(_SPACE, text, at)
        self._held.append(text[at:begin])
        if text.startswith(_THINK, begin):
            self._held.clear()
            self._thought = True
            self._state = _State.THINKING
            return begin + len(_THINK)
        if _THINK.startswith(text[begin:]):
            self._tail = text[begin:]
            return None
        self._leave(_State.THINKING if self._thinking_open else _State.ANSWER)
        return begin

    def _name(self, text: str, at: int) -> int | None:
        """Behind `<tool_call>`: a call, if a name and then a tag of the call follow; else it was text."""
        drafting = self._state is _State.DRAFT_NAME
        end = _end(_NAME, text, at)
        rest = text[end : end + _LONGEST]
        if end - at <= _NAME_LIMIT:
            if rest.startswith((_KEY, _CALL_END)):
                if drafting:
                    self._state = _State.DRAFT
                    self._held.append(_CALL)
                    return at
                self._state = _State.ARGUMENTS
                self._call = _Call(text[at:end])
                return end
            if rest == "\\" or any(t.startswith(rest) for t in (_KEY, _CALL_END, *STOP_TOKENS)):
                self._tail = text[at:]
                return None
        self._state = _State.THINKING if drafting else _State.ANSWER
        self._text(_CALL)
        return at

    def _text(self, text: str) -> None:
        """Text between tags."""
        if self._state is _State.THINKING:
            if visible := self._reasoning.add(text):
                self._events.append(ThinkingDelta(visible))
        elif self._state is _State.ANSWER:
            if visible := self._answer.add(text):
                self._events.append(AnswerDelta(visible))
        elif self._state is _State.DRAFT:
            self._held.append(text)
        else:
            self._call.text.append(text)

    def _step(self, tag: str) -> None:
        """A tag that means something in this state."""
        if tag == _THINK_END:
            self._leave(_State.THINKING)
            self._end_thinking(closed=True)
        elif tag == _CALL:
            self._state = _State.DRAFT_NAME if self._state is _State.THINKING else _State.NAME
        elif tag == _CALL_END:
            self._end_call()
        else:
            self._call.take(tag, self._types)
            self._state = _AFTER[tag]

    def _leave(self, state: _State) -> None:
        """What was held back belongs to `state`."""
        held, self._held = "".join(self._held), []
        self._state = state
        self._text(held)

    def _end_thinking(self, *, closed: bool) -> None:
        self._unclosed_think = not closed
        self._state = _State.ANSWER
        if self._reasoning.begun:
            self._events.append(ThinkingDone(seconds=0.0, tokens=0, closed=closed))

    def _end_call(self) -> None:
        call, whole = self._call, self._state is _State.ARGUMENTS
        raw = call.end()
        if whole and call.sound:
            self._calls.append(ToolCall(call.name, call.arguments))
            self._events.append(ToolCallReady(self._calls[-1]))
        else:
            self._malformed.append(raw)
            self._events.append(ToolCallBroken(raw))
        self._state = _State.ANSWER

    def _end(self) -> None:
        """Nothing follows: the tail is text."""
        tail, self._tail = self._tail, ""
        if self._state is _State.START:
            self._leave(_State.THINKING if self._thinking_open else _State.ANSWER)
        if self._state in (_State.DRAFT, _State.DRAFT_NAME):  # the block was never closed: the call counts
            draft, self._held = "".join(self._held) or _CALL, []
            self._end_thinking(closed=False)
            self._run(draft + tail)
            self._end()
        elif self._state in (_State.THINKING, _State.ANSWER):
            self._text(tail)
            if self._state is _State.THINKING:
                self._end_thinking(closed=False)
        else:
            if self._state is _State.NAME:
                self._call = _Call("")
            self._call.text.append(tail)
            self._incomplete = self._call.end()
            self._events.append(ToolCallBroken(self._incomplete))
            self._state = _State.ANSWER


class _Text:
    """Text that is stripped at both ends while it streams, and kept as it stood."""

    def __init__(self) -> None:
        self.begun = False
        self._pieces: list[str] = []
        self._space: list[str] = []

    @property
    def raw(self) -> str:
        return "".join(self._pieces)

    def add(self, text: str) -> str:
        """The text that can be shown now: trailing white space waits for more."""
        self._pieces.append(text)
        shown = text.rstrip()
        if not shown:
            self._space.append(text)
            return ""
        before = "".join(self._space) + shown if self.begun else shown.lstrip()
        self._space = [text[len(shown) :]]
        self.begun = True
        return before


@dataclass(slots=True)
class _Call:
    """A call that is being written. `opening` is its text up to the first tag: the name, spaced."""

    opening: str
    arguments: dict[str, Any] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)
    """Pieces of the text since the last tag."""
    _raw: list[str] = field(default_factory=list)
    _key: str = ""
    _broken: bool = False

    @property
    def name(self) -> str:
        found = _NAME.fullmatch(self.opening)
        return found[1] if found else ""

    @property
    def sound(self) -> bool:
        return bool(self.name) and not self._broken

    def take(self, tag: str, types: ArgumentTypes) -> None:
        """The next tag of the call, whose text before it is complete."""
        text = self._take_text()
        self._raw.append(tag)
        if tag == _KEY_END:
            self._key = text.strip()
            self._broken |= not self._key
        elif tag == _VALUE_END:
            self.arguments[self._key] = types.value(self.name, self._key, text)
        else:
            self._broken |= not _GAP.fullmatch(text)

    def end(self) -> str:
        """The whole text of the call."""
        self._broken |= not _GAP.fullmatch(self._take_text())
        return self.opening + "".join(self._raw)

    def _take_text(self) -> str:
        text = "".join(self.text)
        self.text.clear()
        self._raw.append(text)
        return text


def _undecided(text: str, at: int, tags: Sequence[str]) -> int:
    """Where an end of `text` begins that could become one of the tags; its length, if there is none.

    Every tag begins with `<` and has no other.
    """
    begin = text.rfind("<", max(at, len(text) - _LONGEST))
    return begin if begin >= 0 and any(t.startswith(text[begin:]) for t in tags) else len(text)


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where a pattern that can be empty ends."""
    match = pattern.match(text, at)
    return match.end() if match else at
