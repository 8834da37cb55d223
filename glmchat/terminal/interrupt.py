"""Ctrl-C while an answer comes: the first stops the answer, a second does not wait for the engine."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from ..chat import Chat


@contextmanager
def stops_on_ctrl_c(chat: Chat, *, patience_s: float = 0.0) -> Iterator[None]:
    """Within, SIGINT cancels the running turn; SIGINT again raises KeyboardInterrupt.

    With `patience_s` an engine that takes longer to stop is not waited for either: one step of a large
    model can last seconds. To be used in the main thread.
    """
    pressed = False

    def stop(*_: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        chat.cancel()
        signal.setitimer(signal.ITIMER_REAL, patience_s)

    def leave(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop), signal.signal(signal.SIGALRM, leave)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGALRM, before[1])
