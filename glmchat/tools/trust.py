"""Which files of other people's projects a person has looked at and trusts, by what they hold."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from .state import add_state, read_state


@dataclass(frozen=True, slots=True)
class Trust:
    """Remembered in `file`: a path, and a digest of the text that stood there."""

    file: Path

    def has(self, path: Path, text: str) -> bool:
        """Whether this very text was trusted at this very place."""
        return read_state(self.file).get(str(path.resolve())) == _digest(text)

    def add(self, path: Path, text: str) -> None:
        """Trust it from now on. Raises OSError where that cannot be remembered."""
        add_state(self.file, str(path.resolve()), _digest(text))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
