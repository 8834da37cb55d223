"""The keyboard side of the terminal: borrowed quietly, given back whatever happens."""

from __future__ import annotations

import os
import select
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager

from prompt_toolkit.input import Input
from prompt_toolkit.input.typeahead import store_typeahead
from prompt_toolkit.input.vt100_parser import Vt100Parser
from prompt_toolkit.key_binding.key_processor import KeyPress

_MOST_EARLY_BYTES = 65536
_IFLAG, _LFLAG = 0, 3
_PASTE_ON, _PASTE_OFF, _SHOW_CURSOR = "\x1b[?2004h", "\x1b[?2004l", "\x1b[?25h"


@contextmanager
def borrowed(*, dumb: bool) -> Iterator[None]:
    """Within, keys are not echoed but wait until they are read; Ctrl-C stays a signal.

    On leaving, by whatever way, the terminal's modes are as they were. A dumb terminal keeps its own.
    """
    before = termios.tcgetattr(sys.stdin)
    if not dumb:
        changed = termios.tcgetattr(sys.stdin)
        changed[_IFLAG] &= ~termios.ICRNL
        changed[_LFLAG] &= ~(termios.ECHO | termios.ICANON)
        termios.tcsetattr(sys.stdin, termios.TCSANOW, changed)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        if not dumb:
            _write(_PASTE_OFF + _SHOW_CURSOR)


def keep_early_keys(keys: Input) -> None:
    """Hand over what was typed before the keyboard was borrowed: the terminal made newlines of its Enters."""
    if not select.select([sys.stdin], [], [], 0)[0]:
        return
    early = os.read(sys.stdin.fileno(), _MOST_EARLY_BYTES).decode(errors="replace").replace("\n", "\r")
    presses: list[KeyPress] = []
    parser = Vt100Parser(presses.append)
    parser.feed(early)
    parser.flush()
    store_typeahead(keys, presses)


def keep_pastes_whole() -> None:
    """Have pastes bracketed outside the prompt too, so that one made meanwhile does not send its lines."""
    _write(_PASTE_ON)


def _write(codes: str) -> None:
    sys.stdout.write(codes)
    sys.stdout.flush()
