"""Carries a turn's events from the inference thread to whoever reads them."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from typing import TypeAlias

from ..events import AnswerDelta, Event, ThinkingDelta

INTERVAL_S = 0.05
"""Text is handed over at most this often: waking the readers, in two processes, for each token of a small
model costs more than computing it, and twenty states a second look like a flow."""

_Batch: TypeAlias = "list[Event] | Exception | None"


class Outbox:
    """Written by one thread, iterated by one other. Neighbouring text deltas are joined; the first of a kind
    travels at once, so that nobody waits for the first token of a thought or an answer.

    The iterator ends after `close` and raises what `fail` was given.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[_Batch] = queue.SimpleQueue()
        self._pending: list[Event] = []
        self._sent = 0.0
        self._kind: type[Event] | None = None  # of the newest

    def put(self, event: Event) -> None:
        """Add an event; it travels as soon as the last batch is `INTERVAL_S` old."""
        last = self._pending[-1] if self._pending else None
        if isinstance(event, ThinkingDelta) and isinstance(last, ThinkingDelta):
            self._pending[-1] = ThinkingDelta(last.text + event.text, event.tokens)
        elif isinstance(event, AnswerDelta) and isinstance(last, AnswerDelta):
            self._pending[-1] = AnswerDelta(last.text + event.text)
        else:
            self._pending.append(event)
        new, self._kind = type(event) is not self._kind, type(event)
        if new or time.perf_counter() - self._sent >= INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Hand over what is pending, now."""
        if self._pending:
            self._queue.put(self._pending)
            self._pending = []
            self._sent = time.perf_counter()

    def close(self) -> None:
        """The turn is over."""
        self.flush()
        self._queue.put(None)

    def fail(self, error: Exception) -> None:
        """The turn ended in a fault, which the reader gets after the events so far."""
        self.flush()
        self._queue.put(error)

    def __iter__(self) -> Iterator[Event]:
        while (batch := self._queue.get()) is not None:
            if isinstance(batch, Exception):
                raise batch
            yield from batch
