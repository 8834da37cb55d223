"""Text of a model on its way into a system call, and text of the system on its way into one line."""

from __future__ import annotations

from typing import Any

from glmchat.tools.argv import Refused


def clean(name: str, value: Any) -> str:
    """A text that is not empty and that a system call can take, or Refused."""
    if not isinstance(value, str) or not value:
        raise Refused(f"{name} is empty or no text; give a text")
    if "\0" in value:
        raise Refused(f"{name} holds a NUL character; leave it out")
    encoded(name, value)
    return value


def encoded(name: str, value: Any) -> bytes:
    """A text as UTF-8, or Refused."""
    if not isinstance(value, str):
        raise Refused(f"{name} is no text; give a text")
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise Refused(f"{name} holds half of a surrogate pair, which is no text; leave it out") from None


def shown(text: str, most: int = 300) -> str:
    """On one line: what does not print is escaped, and what is long is cut."""
    cut = text if len(text) <= most else f"{text[:most]}…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
