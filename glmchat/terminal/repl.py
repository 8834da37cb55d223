"""The conversation on whatever terminal there is, which is given back as it was."""

from __future__ import annotations

from ..chat import Chat
from . import tty
from .app import App, OpenEngine
from .lines import Lines
from .progress import LoadState
from .screen import Looks, is_plain, make_console


def run(chat: Chat, load: LoadState, open_engine: OpenEngine, looks: Looks) -> int:
    """Talk until the person leaves; returns the exit code. Raises the fault of a model that fails to load.

    `open_engine` begins to load a model by its name, for /model; `load` hears of its progress.
    """
    if is_plain(make_console()):
        return Lines(chat, open_engine, looks).run()
    with tty.borrowed():
        return App(chat, load, open_engine, looks).run()
