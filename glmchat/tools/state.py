"""Small files that remember what a person decided, readable by that person alone."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from ..locks import locked


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
    with locked(file.parent, wait=True):  # another chat may add to it too
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
