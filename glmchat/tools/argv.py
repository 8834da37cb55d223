"""From a declared command and a call's arguments to the exact argument vector, without a shell anywhere."""

from __future__ import annotations

import json
from typing import Any

from .declare import PLACEHOLDER, Run, Tool

LONGEST_WORD = 131_071
"""Bytes that Linux takes in one word of a command line."""


class Refused(ValueError):
    """Arguments that cannot be put on a command line; says why, for the model."""


def argument_vector(tool: Tool, run: Run, arguments: dict[str, Any]) -> list[str]:
    """The command with each `{name}` replaced.

    A list spreads over several words. An argument that is absent drops its word, and the flag before it.
    Raises Refused for what would be read as an option (`--flag` where a value stands alone), for NUL and
    lone surrogates, which no command line can hold, and for what is too long. Only what is declared says
    what is a value: the word behind a flag, and all that is behind `--`.
    """
    out: list[str] = []
    flag = no_options = False
    for word in run.command:
        match = PLACEHOLDER.fullmatch(word)
        if match is None or match[1] not in (tool.parameters.get("properties") or {}):
            out.append(word)
            no_options = no_options or word == "--"
            flag = word.startswith("-") and not no_options
            continue
        value = arguments.get(match[1])
        values = value if isinstance(value, list) else [] if value is None else [value]
        if flag and not values:
            out.pop()
        for item in values:
            text = _text(item)
            if text.startswith("-") and not (flag or no_options or isinstance(item, int | float)):
                raise Refused(f"{match[1]} begins with '-' and would be read as an option: {text[:40]!r}")
            out.append(_safe(match[1], text))
            flag = False
        flag = False
    return out


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _safe(name: str, text: str) -> str:
    if "\0" in text:
        raise Refused(f"{name} holds a NUL character, which no command line can hold")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise Refused(f"{name} holds half of a surrogate pair, which is no text") from None
    if size > LONGEST_WORD:
        raise Refused(f"{name} is {size:,} bytes long; a command line takes {LONGEST_WORD:,}")
    return text
