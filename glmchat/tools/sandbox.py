"""Runs a command where it can change nothing and reach no network: by bubblewrap, on Linux."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

_BWRAP = "bwrap"
_TMP = "/tmp"


def missing() -> str:
    """Why there is no sandbox here and what to do; "" where there is one. Nothing is run without it then."""
    if not sys.platform.startswith("linux"):
        return "a sandbox needs bubblewrap, which is for Linux alone; take it out to run without one."
    if shutil.which(_BWRAP) is None:
        return "a sandbox needs bubblewrap (bwrap), which is not installed; install it, or take this out."
    return ""


def sandboxed(words: Sequence[str], folder: Path, needed: Sequence[str] = ()) -> list[str]:
    """The argument vector that runs `words` in `folder`: all files read-only, no network, and no longer than
    whoever started it lives.

    /run and /tmp are empty, since a socket in them would lead out. Of /tmp there is what `folder` and the
    paths in `needed` are in; none of these may come from the model.
    """
    paths = [os.path.normpath(path) for path in (str(folder), *needed)]
    shown = sorted({Path(*Path(path).parts[:3]) for path in paths if path.startswith(f"{_TMP}/")})
    return [
        _BWRAP,
        *("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/run", "--tmpfs", _TMP),
        *("--ro-bind-try", "/run/current-system", "/run/current-system"),  # where NixOS has its programs
        *(word for path in shown for word in ("--ro-bind-try", str(path), str(path))),
        *("--unshare-all", "--new-session", "--die-with-parent", "--chdir", str(folder), "--"),
        *words,
    ]
