"""A person at a terminal: keys in, a real pseudo-terminal and an emulated screen out."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pexpect
import pyte
from pyte.screens import Char

ROOT = Path(__file__).resolve().parent.parent


def at_prompt(text: str) -> bool:
    """The toolbar is the last line: the program waits for the person."""
    return (
        re.search(r"(thinking (on|off)( · \d+ tools?)?( · [█░].*)?|Ctrl-C again leaves)$", text) is not None
    )


class _Screen(pyte.HistoryScreen):
    """Answers the terminal queries that a program sends."""

    def __init__(self, columns: int, lines: int) -> None:
        super().__init__(columns, lines, history=5000, ratio=0.5)
        self.answer: Callable[[str], Any] = lambda text: None

    def write_process_input(self, data: str) -> None:
        self.answer(data)


class Terminal:
    """A program in a pseudo-terminal. `text` is all it shows, scrollback first."""

    def __init__(
        self,
        arguments: list[str],
        env: Mapping[str, str] | None = None,
        *,
        columns: int = 80,
        lines: int = 24,
        program: str = sys.executable,
    ) -> None:
        self._screen = _Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        environ = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT), **(env or {})}
        environ.pop("NO_COLOR", None) if not (env and "NO_COLOR" in env) else None
        self._child = pexpect.spawn(
            program, arguments, env=environ, cwd=str(ROOT), dimensions=(lines, columns), timeout=60
        )
        self._child.delaybeforesend = None
        self._screen.answer = self._child.send
        self.raw = b""
        self.modes = termios.tcgetattr(self._child.child_fd)

    @property
    def cells(self) -> list[list[Char]]:
        """Each row, scrollback first; a wide character has an empty cell behind it."""
        screen = self._screen
        rows = [*screen.history.top, *(screen.buffer[y] for y in range(screen.lines))]
        return [[row[x] for x in range(screen.columns)] for row in rows]

    @property
    def lines(self) -> list[str]:
        return ["".join(cell.data for cell in row).rstrip() for row in self.cells]

    @property
    def text(self) -> str:
        return "\n".join(self.lines).rstrip()

    def send(self, keys: str) -> None:
        self._child.send(keys)

    def paste(self, text: str) -> None:
        """As a terminal with bracketed paste sends it."""
        self._child.send(f"\x1b[200~{text}\x1b[201~")

    def resize(self, columns: int, lines: int) -> None:
        """As a terminal does that has drawn what was written so far, for the size that it had."""
        while self._read(patience_s=0.0):
            pass
        self._screen.resize(lines, columns)
        self._child.setwinsize(lines, columns)

    def hang_up(self) -> None:
        """The person closes the terminal's window."""
        self._child.ptyproc.fileobj.close()

    def kill(self, number: int) -> None:
        self._child.kill(number)

    @property
    def children(self) -> list[int]:
        """The processes that the program has started."""
        pid = self._child.pid
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def wait_for(self, wanted: str | Callable[[str], bool], timeout: float = 60.0) -> float:
        """Read until the text shows `wanted`; returns the seconds it took, fails with the screen."""
        started = time.monotonic()
        holds = (lambda text: wanted in text) if isinstance(wanted, str) else wanted
        while not holds(self.text):
            if time.monotonic() - started > timeout or not self._read():
                raise AssertionError(f"never saw {wanted!r}; the screen:\n{self.text}")
        return time.monotonic() - started

    def wait_end(self, timeout: float = 30.0) -> int:
        """Read until the program ends; its exit code (a signal as 128 + number)."""
        ends = time.monotonic() + timeout
        while self._read():
            assert time.monotonic() < ends, f"did not end; the screen:\n{self.text}"
        self.modes_after = termios.tcgetattr(self._child.child_fd)
        self._child.close()
        return (
            self._child.exitstatus if self._child.exitstatus is not None else 128 + self._child.signalstatus
        )

    @property
    def cursor_hidden(self) -> bool:
        return self._screen.cursor.hidden

    def _read(self, patience_s: float = 0.05) -> bool:
        """Take in what there is; false at the end, and without patience where there is nothing."""
        try:
            data = self._child.read_nonblocking(65536, timeout=patience_s)
        except pexpect.TIMEOUT:
            return patience_s > 0
        except pexpect.EOF:
            return False
        self.raw += data
        self._stream.feed(data)
        return True

    def close(self) -> None:
        with contextlib.suppress(pexpect.ExceptionPexpect):
            self._child.close(force=True)


@contextlib.contextmanager
def terminal(arguments: list[str], env: Mapping[str, str] | None = None, **more: Any) -> Iterator[Terminal]:
    """A Terminal whose program does not outlive the test."""
    made = Terminal(arguments, env, **more)
    try:
        yield made
    finally:
        made.close()
