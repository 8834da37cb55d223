"""Ctrl-C while an answer comes: the first stops the answer, a second does not wait for the engine."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ..chat import Chat


@contextmanager
def stops_on_ctrl_c(chat: Chat) -> Iterator[None]:
    """Within, SIGINT cancels the running turn; SIGINT again raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = False

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        chat.cancel()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
