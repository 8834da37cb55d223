"""What the inference thread is to do next: what somebody waits for, in order, and else what may be of use."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Job = TypeVar("Job")
Hint = TypeVar("Hint")


class Todo(Generic[Job, Hint]):
    """Jobs wait for their turn. Of hints only the newest counts, and a job makes it old."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._hint: Hint | None = None

    def put(self, job: Job) -> None:
        with self._changed:
            self._jobs.append(job)
            self._hint = None
            self._changed.notify()

    def hint(self, hint: Hint) -> None:
        with self._changed:
            self._hint = hint
            self._changed.notify()

    def take(self, timeout_s: float | None = None) -> Job | Hint:
        """The next job, else the hint; waits for one. Raises TimeoutError."""
        with self._changed:
            self._changed.wait_for(self.waits, timeout_s)
            if self._jobs:
                return self._jobs.popleft()
            hint, self._hint = self._hint, None
            if hint is None:
                raise TimeoutError
            return hint

    def presses(self, but: Callable[[Job], bool]) -> bool:
        """Whether a job waits, `but` one of those. To be asked by whoever takes them."""
        return bool(self._jobs) and not but(self._jobs[0])

    def waits(self) -> bool:
        """Whether there is anything to take."""
        return bool(self._jobs) or self._hint is not None
