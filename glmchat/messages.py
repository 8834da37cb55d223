"""Plain values of a conversation: messages and tool calls, JSON in and out, always well-formed.

Well-formed means: content is text, never null; arguments are a dict; a tool result is text and follows
the assistant turn that made its call. What comes from outside is brought into this form by
`Message.from_dict`, or refused with a ConversationError; nothing further down has to check again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, cast, get_args

from .errors import ConversationError

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]

_THINK_END = "</think>"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the model asks for. `id` ties its result to it; it is unique within a conversation."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    id: str = ""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ToolCall:
        """From the OpenAI form `{id, type, function: {name, arguments}}` or its inner part alone.

        Arguments may be a dict, JSON text of one, null or absent (both: no arguments).
        """
        inner = data.get("function", data) if isinstance(data, Mapping) else None
        if not isinstance(inner, Mapping):
            raise ConversationError("A tool call's `function` must be an object with `name` and `arguments`.")
        name = inner.get("name")
        if not isinstance(name, str) or not name:
            raise ConversationError("A tool call has no name; give `function.name`.")
        return cls(name, _arguments(name, inner.get("arguments")), str(data.get("id") or ""))

    def to_dict(self) -> dict[str, Any]:
        """The OpenAI form, with arguments as a dict."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `reasoning_content` is the think block without its tags, "" when there was none."""

    role: Role
    content: str = ""
    reasoning_content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    interrupted: bool = False
    """The person stopped this answer; what came is kept and is a valid turn."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Message:
        """From the OpenAI form; content may be text, null, text parts, or for tools any JSON value.

        Where an assistant's reasoning is not given apart, a think block in its content is taken for it.
        """
        if not isinstance(data, Mapping):
            raise ConversationError(f"A message must be an object, not {type(data).__name__}.")
        role = data.get("role")
        if role not in get_args(Role):
            raise ConversationError(
                f"Unknown role {role!r} in a message; use one of {', '.join(get_args(Role))}."
            )
        calls = data.get("tool_calls") or ()
        if not isinstance(calls, Iterable) or isinstance(calls, str | Mapping):
            raise ConversationError("`tool_calls` must be a list of tool calls.")
        role = cast(Role, role)
        content = _text(data.get("content"), role)
        reasoning = data.get("reasoning_content")
        reasoning = data.get("reasoning") if reasoning is None else reasoning
        if reasoning is None and role == "assistant" and _THINK_END in content:
            reasoning, _, content = content.partition(_THINK_END)
            reasoning = reasoning.rpartition("<think>")[2].strip("\n")
            content = content.lstrip("\n")
        return cls(
            role=role,
            content=content,
            reasoning_content=_text(reasoning, role),
            tool_calls=tuple(c if isinstance(c, ToolCall) else ToolCall.from_dict(c) for c in calls),
            tool_call_id=str(data.get("tool_call_id") or ""),
            interrupted=bool(data.get("interrupted", False)),
        )

    def to_dict(self) -> dict[str, Any]:
        """The OpenAI form; fields that say nothing are left out, content never is."""
        out: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning_content or (self.role == "assistant" and _THINK_END in self.content):
            out["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            out["tool_calls"] = [c.to_dict() for c in self.tool_calls]
        if self.tool_call_id:
            out["tool_call_id"] = self.tool_call_id
        if self.interrupted:
            out["interrupted"] = True
        return out


def normalize(messages: Iterable[Message | Mapping[str, Any]]) -> list[Message]:
    """Messages of any accepted form as `Message`s, in order; whether calls have results is not checked.

    A tool message whose content is a list of `{output: …}` becomes one message for each output.
    """
    out = []
    for message in messages:
        if isinstance(message, Message):
            out.append(message)
        else:
            out += [Message.from_dict(m) for m in _split_outputs(message)]
    return out


class Conversation:
    """An ordered, well-formed list of messages. Appending what would break the form raises."""

    def __init__(self, messages: Iterable[Message | Mapping[str, Any]] = ()) -> None:
        self._messages: list[Message] = []
        for message in normalize(messages):
            self.append(message)

    @property
    def messages(self) -> tuple[Message, ...]:
        return tuple(self._messages)

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages)

    def append(self, message: Message | Mapping[str, Any]) -> Message:
        """Add one message and return it as stored: calls get ids, a tool result gets its call's id.

        A user, system or assistant message may follow unanswered calls only after each was answered
        (`unanswered` lists them).
        """
        if not isinstance(message, Message):
            message = Message.from_dict(message)
        waiting = self.unanswered
        if message.role == "tool":
            message = self._tie(message, waiting)
        elif waiting:
            raise ConversationError(
                f"The call of {waiting[0].name} has no result yet; append its tool message first."
            )
        if message.tool_calls:
            if message.role != "assistant":
                raise ConversationError("Only an assistant message can carry tool calls.")
            message = replace(message, tool_calls=self._with_ids(message.tool_calls))
        self._messages.append(message)
        return message

    @property
    def unanswered(self) -> tuple[ToolCall, ...]:
        """Calls of the newest assistant turn that have no result yet, in order."""
        answered: set[str] = set()
        for message in reversed(self._messages):
            if message.role == "tool":
                answered.add(message.tool_call_id)
            elif message.role == "assistant":
                return tuple(c for c in message.tool_calls if c.id not in answered)
            else:
                break
        return ()

    def copy(self) -> Conversation:
        new = Conversation()
        new._messages = list(self._messages)
        return new

    def set_system(self, text: str | None) -> None:
        """Put this in place of the leading system message, or before the rest; None takes it away."""
        if self._messages and self._messages[0].role == "system":
            del self._messages[0]
        if text is not None:
            self._messages.insert(0, Message("system", text))

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` messages."""
        del self._messages[length:]

    def clear(self, *, keep_system: bool = True) -> None:
        """Forget the messages; a leading system message stays unless told otherwise."""
        keep = [m for m in self._messages[:1] if keep_system and m.role == "system"]
        self._messages = keep

    def to_list(self) -> list[dict[str, Any]]:
        return [m.to_dict() for m in self._messages]

    def _tie(self, message: Message, waiting: tuple[ToolCall, ...]) -> Message:
        if not waiting:
            raise ConversationError(
                "A tool result without a call before it; append the assistant's call first."
            )
        ids = [c.id for c in waiting]
        if not message.tool_call_id:
            return replace(message, tool_call_id=ids[0])
        if message.tool_call_id not in ids:
            raise ConversationError(
                f"A tool result answers call {message.tool_call_id!r}, which is not waiting; "
                f"waiting: {', '.join(ids)}."
            )
        return message

    def _with_ids(self, calls: tuple[ToolCall, ...]) -> tuple[ToolCall, ...]:
        taken = {c.id for m in self._messages for c in m.tool_calls}
        number = len(taken)
        out = []
        for call in calls:
            name = call.id
            while not name or name in taken:
                number += 1
                name = f"call_{number}"
            taken.add(name)
            out.append(replace(call, id=name))
        return tuple(out)


def _arguments(name: str, value: Any) -> dict[str, Any]:
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as e:
            raise ConversationError(f"The arguments of the call of {name} are not JSON ({e}).") from None
    if not isinstance(value, Mapping):
        raise ConversationError(
            f"The arguments of the call of {name} must be an object, not {type(value).__name__}."
        )
    return {str(key): v for key, v in value.items()}


def _text(value: Any, role: Role) -> str:
    """Content as text. Text parts are joined, other parts left out; for a tool any other value is JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(p, str) or _is_part(p) for p in value):
        return "".join(p if isinstance(p, str) else p["text"] for p in value if _is_text(p))
    if role == "tool":
        return json.dumps(value, ensure_ascii=False)
    raise ConversationError(
        f"The content of a message of role {role} must be text or text parts, not {type(value).__name__}."
    )


def _is_part(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("type"), str)


def _is_text(part: Any) -> bool:
    return isinstance(part, str) or (part["type"] == "text" and isinstance(part.get("text"), str))


def _split_outputs(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if isinstance(message, Mapping) and message.get("role") == "tool":
        results = message.get("content")
        if isinstance(results, list) and all(isinstance(r, Mapping) and "output" in r for r in results):
            return [{**message, "content": r["output"]} for r in results] or [message]
    return [message]
