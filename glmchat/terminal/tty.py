"""The state of the terminal: borrowed quietly, given back whatever happens."""

from __future__ import annotations

import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager

_IFLAG, _LFLAG = 0, 3
_PASTE_ON, _PASTE_OFF, _SHOW_CURSOR = "\x1b[?2004h", "\x1b[?2004l", "\x1b[?25h"


@contextmanager
def restored(*, dumb: bool) -> Iterator[None]:
    """On leaving, by whatever way, the terminal's modes are as they were on entering."""
    before = termios.tcgetattr(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        if not dumb:
            _write(_PASTE_OFF + _SHOW_CURSOR)


@contextmanager
def quiet(*, dumb: bool) -> Iterator[None]:
    """While an answer is drawn, keys are not echoed into it; they wait for the next prompt.

    Pastes stay bracketed, so that one made meanwhile does not send its lines either.
    """
    before = termios.tcgetattr(sys.stdin)
    changed = termios.tcgetattr(sys.stdin)
    changed[_LFLAG] &= ~termios.ECHO
    if not dumb:  # keys are read one by one later; a dumb terminal keeps its lines
        changed[_LFLAG] &= ~termios.ICANON
        changed[_IFLAG] &= ~termios.ICRNL
    termios.tcsetattr(sys.stdin, termios.TCSANOW, changed)
    if not dumb:
        _write(_PASTE_ON)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def _write(codes: str) -> None:
    sys.stdout.write(codes)
    sys.stdout.flush()
