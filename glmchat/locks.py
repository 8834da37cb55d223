"""Folders that one process has at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether no other process has it within; not known, and so False, where files cannot be locked."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        mine = True
    except OSError:
        mine = False
    try:
        yield mine
    finally:
        os.close(handle)  # which unlocks it; so does the end of the process
