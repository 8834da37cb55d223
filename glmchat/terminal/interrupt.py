"""Ctrl-C while an answer comes: the first stops the answer, a second does not wait for the engine."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
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

    with interrupts(stop):
        yield


@contextmanager
def interrupts(handler: Callable[..., object] = signal.default_int_handler) -> Iterator[None]:
    """Within, SIGINT is for `handler`; by default it raises KeyboardInterrupt, as where a person is asked."""
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
