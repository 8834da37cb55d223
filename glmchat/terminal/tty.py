"""The keyboard side of the terminal: borrowed quietly, given back whatever happens."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress

MOST_BYTES = 65536
"""That are read from the keyboard at once."""
_IFLAG, _LFLAG, _CC = 0, 3, 6
_PASTE_OFF, _SHOW_CURSOR = "\x1b[?2004l", "\x1b[?25h"
_LINES_ONLY = ("dumb", "unknown")


def ending_signals() -> list[signal.Signals]:
    """Those that end the program; that the terminal was closed does not under nohup."""
    both = (signal.SIGTERM, signal.SIGHUP)
    return [number for number in both if signal.getsignal(number) is not signal.SIG_IGN]


def is_plain() -> bool:
    """Whether stdout is a terminal that can only take lines of text, or none."""
    return os.environ.get("TERM", "").lower() in _LINES_ONLY or not sys.stdout.isatty()


@contextmanager
def borrowed() -> Iterator[None]:
    """Within, keys are not echoed but wait until they are read; Ctrl-C stays a signal.

    On leaving, by whatever way, the terminal's modes are as they were.
    """
    before = termios.tcgetattr(sys.stdin)
    changed = termios.tcgetattr(sys.stdin)
    changed[_IFLAG] &= ~termios.ICRNL
    changed[_LFLAG] &= ~(termios.ECHO | termios.ICANON)
    changed[_CC][termios.VQUIT] = b"\0"  # none: it would leave the terminal like this
    termios.tcsetattr(sys.stdin, termios.TCSANOW, changed)
    try:
        yield
    finally:
        with suppress(OSError, termios.error):  # the terminal is gone
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
            sys.stdout.write(_PASTE_OFF + _SHOW_CURSOR)
            sys.stdout.flush()


def typed_before() -> str:
    """What was typed before the keyboard was borrowed, right after that: the terminal made newlines of its
    Enters, and a NUL of each Ctrl-D."""
    if not select.select([sys.stdin], [], [], 0)[0]:
        return ""
    early = os.read(sys.stdin.fileno(), MOST_BYTES).decode(errors="replace")
    return early.replace("\n", "\r").replace("\0", "\x04")
