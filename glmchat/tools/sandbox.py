"""Runs a command where it can change nothing and reach no network: by bubblewrap, on Linux."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

_BWRAP = "bwrap"


def missing() -> str:
    """Why there is no sandbox here and what to do; "" where there is one. Nothing is run without it then."""
    if not sys.platform.startswith("linux"):
        return "a sandbox needs bubblewrap, which is for Linux alone; take it out to run without one."
    if shutil.which(_BWRAP) is None:
        return "a sandbox needs bubblewrap (bwrap), which is not installed; install it, or take this out."
    return ""


def sandboxed(words: Sequence[str], folder: Path) -> list[str]:
    """The argument vector that runs `words` in `folder`, with all files read-only, a /tmp of its own and no
    network, and no longer than whoever started it lives."""
    return [
        _BWRAP,
        *("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"),
        *(("--ro-bind", str(folder), str(folder)) if folder.is_relative_to("/tmp") else ()),
        *("--unshare-all", "--new-session", "--die-with-parent", "--chdir", str(folder), "--"),
        *words,
    ]
