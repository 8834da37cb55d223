"""What a call gave, and the output of a process kept within bounds."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

_TELL_S = 0.1
_CHUNK = 65536
_LONGEST_LINE = 500

OnLine = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a call: the text that the model reads, and for people whether it went well, and how."""

    text: str
    ok: bool
    note: str = ""
    """`exit code 2`, `timed out after 30 s`; "" when all went well."""
    seconds: float = 0.0


def without_middle(head: bytes, tail: bytes, total: int) -> str:
    """The beginning and the end of `total` bytes, and between them how many are left out."""
    cut = total - len(head) - len(tail)
    if cut <= 0:
        return (head + tail).decode(errors="replace")
    between = f"\n[{cut:,} bytes are left out here]\n"
    return head.decode(errors="ignore") + between + tail.decode(errors="ignore")


class Kept:
    """Reads a pipe to its end in a thread and keeps its beginning and its end, so that memory stays flat."""

    def __init__(self, pipe: IO[bytes], most: int, on_line: OnLine) -> None:
        self._pipe = pipe
        self._room = most // 2
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self._total = 0
        self._on_line = on_line
        self._told = 0.0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> None:
        self._thread.join(seconds)

    def close(self, seconds: float) -> None:
        """Wait for the end; a pipe that somebody else still holds is left to its thread."""
        self._thread.join(seconds)
        if not self._thread.is_alive():
            self._pipe.close()

    def text(self) -> str:
        head, tail = bytes(self._head), b"".join(self._tail)[-self._room :]
        return without_middle(head, tail, self._total)

    def _read(self) -> None:
        fd = self._pipe.fileno()
        with contextlib.suppress(OSError, ValueError):
            while chunk := os.read(fd, _CHUNK):
                self._total += len(chunk)
                now = time.monotonic()
                if now - self._told < _TELL_S:
                    pass
                elif lines := chunk[-_LONGEST_LINE:].decode(errors="replace").strip().splitlines():
                    self._told = now
                    self._on_line(lines[-1])
                room = self._room - len(self._head)
                self._head += chunk[:room]
                self._keep(chunk[room:])

    def _keep(self, chunk: bytes) -> None:
        if not chunk:
            return
        self._tail.append(chunk)
        self._tail_size += len(chunk)
        while self._tail_size - len(self._tail[0]) >= self._room:
            self._tail_size -= len(self._tail.popleft())
