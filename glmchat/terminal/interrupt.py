"""Ctrl-C while an answer comes: the first stops the answer, a second does not wait for the engine."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from ..chat import Chat


@contextmanager
def stops_on_ctrl_c(chat: Chat) -> Iterator[None]:
    """Within, SIGINT cancels the running turn; SIGINT again raises KeyboardInterrupt. For the main thread."""
    pressed = False

    def stop(*_: object) -> None:
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


@contextmanager
def interrupts() -> Iterator[None]:
    """Within, SIGINT raises KeyboardInterrupt, as where a person is asked. For the main thread."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
