"""The front end of programs: one JSON object, or one event a line.

After the options are understood, a reader always gets exactly one closing object: the whole turn, or
`{"error": {type, message, exit_code}}`; the error line goes to stderr as well.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from contextlib import closing
from typing import Any

from ..chat import Chat
from ..errors import EXIT_ERROR, GlmChatError
from ..events import Event, Timing, TurnDone, Usage
from ..messages import Message, ToolCall
from .interrupt import stops_on_ctrl_c
from .plain import EXIT_CODES


def run(chat: Chat, prompt: str, *, stream: bool) -> int:
    """Answer one prompt and return the exit code."""
    code = EXIT_ERROR
    with stops_on_ctrl_c(chat), closing(chat.send(prompt)) as turn:
        for event in turn:
            if isinstance(event, TurnDone):
                whole = result(event, model=chat.engine.info.name, load_s=chat.engine.info.load_s)
                write({"type": "turn_done", **whole} if stream else whole)
                code = EXIT_CODES[event.finish_reason]
            elif stream:
                write(event_object(event))
    return code


def result(done: TurnDone, *, model: str, load_s: float) -> dict[str, Any]:
    """The whole turn; every field is always there."""
    return {
        "model": model,
        "message": _plain(done.message),
        "messages": [message.to_dict() for message in done.messages],
        "usage": dataclasses.asdict(done.usage),
        "timing": {"load_s": load_s, **dataclasses.asdict(done.timing)},
        "finish_reason": done.finish_reason,
    }


def event_object(event: Event) -> dict[str, Any]:
    """`{"type": "answer_delta", …}`: the class's name in snake case, then its fields."""
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()
    return {"type": name, **{f.name: _plain(getattr(event, f.name)) for f in dataclasses.fields(event)}}


def write_error(error: Exception, *, stream: bool) -> None:
    """Say a fault on stdout in the reader's own language."""
    code = error.exit_code if isinstance(error, GlmChatError) else EXIT_ERROR
    body = {"error": {"type": type(error).__name__, "message": str(error), "exit_code": code}}
    write({"type": "error", **body} if stream else body)


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return {
            "role": value.role,
            "content": value.content,
            "reasoning_content": value.reasoning_content,
            "tool_calls": [call.to_dict() for call in value.tool_calls],
        }
    if isinstance(value, Usage | Timing):
        return dataclasses.asdict(value)
    return value.to_dict() if isinstance(value, ToolCall) else value


def write(value: dict[str, Any]) -> None:
    """One JSON object, on a line of its own."""
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    text = json.dumps(value, ensure_ascii=not unicode)
    # A lone surrogate is legal in JSON only when escaped; U+2028 and U+2029 end a line for some readers.
    text = re.sub("[\ud800-\udfff\u2028\u2029\x7f-\x9f]", lambda m: f"\\u{ord(m[0]):04x}", text)
    print(text, flush=True)
