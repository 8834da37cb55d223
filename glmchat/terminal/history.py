"""What the person typed in earlier chats."""

from __future__ import annotations

import contextlib
import os

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from ..settings import state_folder


def open_history() -> History:
    """The person's own history file (mode 0600); without one to write to, a history for this run."""
    folder = state_folder()
    path = folder / "history"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
        path.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return _Kept(str(path))


def remember(history: History, text: str) -> None:
    """Add what was sent, but not the same twice in a row."""
    if history.get_strings()[-1:] != [text]:
        history.append_string(text)


class _Kept(FileHistory):
    """A message is sent even where there is no room to remember it."""

    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError):
            super().store_string(string)
