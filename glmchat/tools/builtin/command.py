"""run_command: one string from the model to the words of one program. There is no shell behind it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from glmchat.tools.argv import Refused

from .text import clean

_OPERATORS = "|&;<>()`\n"


def words(command: Any) -> list[str]:
    """The program and its arguments, or Refused for what only a shell could run."""
    text = clean("command", command).strip()
    for found in _shell_syntax(text):
        name = "a line break" if found == "\n" else found
        raise Refused(
            f"command has {name} outside of quotes, but there is no shell; make one call per program, "
            f"and put single quotes around what is meant literally"
        )
    try:
        split = shlex.split(text)
    except ValueError as e:
        raise Refused(f"command cannot be split into words: {str(e).lower()}; close what is open") from None
    if not split or not split[0]:
        raise Refused("command names no program; begin with one")
    return split


def _shell_syntax(text: str) -> Iterator[str]:
    """What a shell would act on, where it would."""
    quote, escaped = "", False
    for at, c in enumerate(text):
        if escaped:
            escaped = False
            if c == "\n":  # a shell joins the lines, shlex would keep the break in a word
                yield c
        elif c == "\\" and quote != "'":
            escaped = True
        elif quote:
            if c == quote:
                quote = ""
            elif quote == '"' and (c == "`" or text.startswith("$(", at)):
                yield "$(" if c == "$" else c
        elif c in "'\"":
            quote = c
        elif c in _OPERATORS:
            yield c
