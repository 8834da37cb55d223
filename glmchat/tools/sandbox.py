"""Runs a command where it can change no file and reach no network: by bubblewrap, on Linux."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

_BWRAP = "bwrap"
_TMP, _MEDIA = "/tmp", "/run/media"


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

    /run and /tmp are empty, since a socket in them would lead out; one that is elsewhere still does. Of /tmp
    there is what `folder` and the paths in `needed` are in, and of /run the medium; none of these may come
    from the model.
    """
    given = [path for path in (str(folder), *needed) if os.path.isabs(path)]
    shown = sorted({s for path in given for s in map(_shown, _spellings(path)) if s is not None})
    return [
        _BWRAP,
        *("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/run", "--tmpfs", _TMP),
        *("--ro-bind-try", "/run/current-system", "/run/current-system"),  # where NixOS has its programs
        *(word for path in shown for word in ("--ro-bind-try", str(path), str(path))),
        *("--unshare-all", "--new-session", "--die-with-parent", "--chdir", str(folder), "--"),
        *words,
    ]


def _spellings(path: str) -> set[str]:
    """Without `..`, and without links."""
    return {os.path.normpath(path), os.path.realpath(path)}


def _shown(path: str) -> Path | None:
    """What of an empty folder is needed for this path."""
    for folder, parts in ((_TMP, 3), (_MEDIA, 5)):  # in /run/media/USER/MEDIUM
        if path.startswith(f"{folder}/"):
            return Path(*Path(path).parts[:parts])
    return None
