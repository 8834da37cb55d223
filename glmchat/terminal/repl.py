"""The conversation on whatever terminal there is, which is given back as it was."""

from __future__ import annotations

from ..chat import Chat
from .app import App, OpenEngine
from .early import Early
from .lines import Lines
from .progress import LoadState
from .screen import Looks


def run(chat: Chat, load: LoadState, open_engine: OpenEngine, looks: Looks, early: Early | None) -> int:
    """Talk until the person leaves; returns the exit code. Raises the fault of a model that fails to load.

    `open_engine` begins to load a model by its name, for /model; `load` hears of its progress. `early` is
    what the conversation takes over from, where the terminal can do more than take lines.
    """
    if early is None:
        return Lines(chat, open_engine, looks).run()
    try:
        return App(chat, load, open_engine, looks).run(early.end)
    finally:
        early.close()  # before the engine ends, for which a person should not wait
