"""The prompt, before what draws the conversation is imported: keys are shown, and kept, at once.

What is typed as plain text is shown, as far as a row goes. All else, as Enter, arrows and what is pasted, is
kept too, but shown by the conversation's own line, which takes over at the same place.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext

from . import say, tty

GREETING = "glmchat · /help lists commands and keys"
PROMPT, PROMPT_AT_ONCE = "› ", "» "
"""Where the person types: the model thinks first, or answers at once."""
_PASTE_ON, _BOLD, _QUIET, _USUAL = "\x1b[?2004h", "\x1b[1m", "\x1b[2m", "\x1b[0m"
_DELETE = ("\x7f", "\b")


@contextlib.contextmanager
def stand(*, thinks: bool) -> Iterator[Early | None]:
    """The prompt as it begins; none where the terminal takes nothing but lines. Leaving takes it away."""
    if tty.is_plain():
        yield None
        return
    early = Early(PROMPT if thinks else PROMPT_AT_ONCE)
    try:
        early.begin()
        yield early
    finally:
        early.close()


class Early:
    """Stands at the lower edge of what was written. What is said meanwhile goes above it."""

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt
        self._typed = ""
        self._shown = ""
        self._plain = True  # so far, all that was typed
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._terminal = contextlib.ExitStack()  # is given back when it closes
        self._rows = 0
        self._waking: int | None = None
        """What ends the thread that reads, when it is closed."""

    def begin(self) -> None:
        """Stand there; the keyboard is borrowed."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # not half of it
        try:
            self._begin()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        say.beside = self._aside

    def end(self) -> str:
        """The conversation's line takes over. The keyboard stays borrowed; what was typed so far."""
        self._stop()
        self._erase()
        say.beside = nullcontext
        return self._typed

    def close(self) -> None:
        """The terminal is given back as it was."""
        self.end()
        self._terminal.close()

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """Within, the terminal is as it was found."""
        self._stop()
        self._erase()
        sys.stdout.flush()
        self._terminal.close()
        try:
            yield
        finally:
            self.begin()

    def _begin(self) -> None:
        self._terminal.enter_context(tty.borrowed())
        self._columns = os.get_terminal_size(sys.stdout.fileno()).columns
        greeted = len(GREETING) < self._columns
        self._rows = 3 if greeted else 1
        above = f"{_QUIET}{GREETING}{_USUAL}\r\n\r\n" if greeted else ""
        self._write(f"\r\x1b[J{above}{self._row}{_PASTE_ON}")
        self._take(tty.typed_before())
        self._wake, self._waking = os.pipe()
        self._thread = threading.Thread(target=self._read, name="glmchat-early-keys", daemon=True)
        self._thread.start()

    def _stop(self) -> None:
        waking, self._waking = self._waking, None
        if waking is not None:
            os.close(waking)
            self._thread.join()
            os.close(self._wake)

    def _erase(self) -> None:
        """With what is written next, or when it is flushed."""
        rows, self._rows = self._rows, 0
        if rows:
            sys.stdout.write("\x1b[A" * (rows - 1) + "\r\x1b[J")

    def _read(self) -> None:
        keyboard = sys.stdin.fileno()
        while True:
            ready, _, _ = select.select([keyboard, self._wake], [], [])
            if keyboard in ready:
                if not (some := os.read(keyboard, tty.MOST_BYTES)):
                    return  # the terminal is gone
                self._take(self._decoder.decode(some))
            elif ready:
                return

    def _take(self, text: str) -> None:
        self._typed += text
        before = self._shown
        for char in text if self._plain else "":
            if char in _DELETE:
                self._shown = self._shown[:-1]
            elif char.isprintable() and _cells(self._prompt + self._shown + char) < self._columns:
                self._shown += char
            else:
                self._plain = False
                break
        if self._shown.startswith(before):
            self._write(self._shown[len(before) :])
        else:
            self._write(f"\r\x1b[K{self._row}")

    @property
    def _row(self) -> str:
        return f"{_BOLD}{self._prompt}{_USUAL}{self._shown}"

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def _cells(text: str) -> int:
    """How many they take at the most."""
    return sum(1 if char.isascii() else 2 for char in text)
