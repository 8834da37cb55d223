"""Small files that remember what a person decided, readable by that person alone."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def read_state(file: Path) -> dict[str, str]:
    """What it holds; nothing where it is not there or is damaged."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def add_state(file: Path, key: str, value: str) -> None:
    """Remember one more. Raises OSError where that cannot be."""
    file = Path(os.path.realpath(file))  # where it is a link it stays one
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(file.parent):
        if file.exists():
            file.read_bytes()  # what cannot be read must not be lost
        kept = {**read_state(file), key: value}
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as new:
            try:
                new.write(json.dumps(kept, indent=1) + "\n")
                new.flush()
                os.replace(new.name, file)  # whole or not at all: the disk may be full
            except OSError:
                os.unlink(new.name)
                raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Within, no other chat adds to a file in it, where the file system has locks."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)  # which unlocks it
