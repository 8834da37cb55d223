"""What glmchat itself says beside a conversation: on stderr, safe, and at a terminal broken between words."""

from __future__ import annotations

import contextlib
import os
import sys
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from .sanitize import sanitize

beside: Callable[[], AbstractContextManager[None]] = nullcontext
"""Within, nothing of ours stands in the way of what is written or asked; see early."""


def say(text: str) -> None:
    """A line that begins with the program's name, as lines of programs do."""
    if sys.stderr is None:
        return
    text = sanitize(f"glmchat: {text}")
    if width := _width():
        text = "\n".join(
            textwrap.fill(
                line, width, break_long_words=False, break_on_hyphens=False, replace_whitespace=False
            )
            for line in text.split("\n")
        )
    with beside(), contextlib.suppress(OSError):  # nobody can be told then, and the answer is not for it
        print(text, file=sys.stderr, flush=True)


def _width() -> int:
    """Columns of the terminal; 0 where there is none, and lines are for programs, whole."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return 0
