"""How a person is asked whether a call may run, and how the answer is read: a word and Enter.

No single key does it. Who happens to be typing when the question comes must not allow anything by that.
"""

from __future__ import annotations

import json
from typing import Any

from ..messages import ToolCall
from ..tools.approve import Answer, No, Remember, Yes
from .sanitize import sanitize_json

CHOICES = "y once · s session · a always · e edit · n no, or why not"

_YES: dict[str, Remember] = {"y": "once", "yes": "once", "s": "session", "a": "always"}


def read_answer(text: str) -> Answer | None:
    """None: the arguments are to be edited. Whatever is no answer is a reason to refuse."""
    word = text.strip()
    if remember := _YES.get(word.lower()):
        return Yes(remember)
    if word.lower() == "e":
        return None
    return No("" if is_no(word) else word)


def is_no(text: str) -> bool:
    return text.strip().lower() in ("", "n", "no")


def written_arguments(call: ToolCall) -> str:
    """The arguments in one line, to be edited."""
    return sanitize_json(json.dumps(call.arguments, ensure_ascii=False))


def read_arguments(text: str) -> dict[str, Any]:
    """Edited arguments. Raises ValueError, one line."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("arguments stand in braces")
    return value
