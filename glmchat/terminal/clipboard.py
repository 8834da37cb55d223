"""Text to the clipboard: through the terminal (OSC 52, which also works over ssh) and by the local tool."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

_PATIENCE_S = 2.0


def copy(text: str) -> str:
    """Put `text` on the clipboard, and say how that went.

    `Copied`, or `Sent to the terminal's clipboard` when only the terminal was asked: it does not tell
    whether it obeyed.
    """
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        sys.stdout.write(f"\x1b]52;c;{base64.b64encode(text.encode()).decode()}\x07")
        sys.stdout.flush()
    for words in _tools():
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(
                words,
                input=text.encode(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_PATIENCE_S,
                check=True,
            )
            return "Copied"
    return "Sent to the terminal's clipboard"


def _tools() -> Iterator[list[str]]:
    """Clipboard tools that can work here, the likeliest first."""
    candidates = (
        (sys.platform == "darwin", ["pbcopy"]),
        ("WAYLAND_DISPLAY" in os.environ, ["wl-copy"]),
        ("DISPLAY" in os.environ, ["xclip", "-selection", "clipboard"]),
        ("DISPLAY" in os.environ, ["xsel", "--clipboard", "--input"]),
    )
    return (words for there, words in candidates if there and shutil.which(words[0]))


def code_blocks(markdown: str) -> list[str]:
    """The code blocks of an answer, as the screen shows them, in order, without their fences."""
    from .blocks import parser

    tokens = parser().parse(markdown)
    return [token.content for token in tokens if token.type in ("fence", "code_block")]
