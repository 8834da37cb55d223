"""What each key does in the conversation; the table that people read is `commands.KEYS`."""

from __future__ import annotations

import functools
from typing import Protocol

from prompt_toolkit.buffer import Buffer
from prompt_toolkit.filters import Condition, has_completions, is_searching
from prompt_toolkit.input.ansi_escape_sequences import ANSI_SEQUENCES
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys

from .pastes import Pastes

# Shift-Enter, from terminals that tell it from Enter, is Alt-Enter.
for _sequence in ("\x1b[27;2;13~", "\x1b[13;2u"):
    ANSI_SEQUENCES[_sequence] = (Keys.Escape, Keys.ControlM)


class Desk(Protocol):
    """What keys may do."""

    buffer: Buffer
    pastes: Pastes
    armed: bool

    @property
    def busy(self) -> bool:
        """A turn runs."""

    @property
    def queued(self) -> list[str]: ...

    def submit(self) -> None: ...
    def ctrl_c(self) -> None: ...
    def stop(self) -> None: ...
    def take_back(self) -> None: ...
    def fold(self) -> None: ...
    def clear_screen(self) -> None: ...
    def suspend(self) -> None: ...
    def quit(self) -> None: ...


def bindings(desk: Desk) -> KeyBindings:
    keys = KeyBindings()
    writing = ~is_searching
    waiting = Condition(lambda: bool(desk.queued))
    busy = Condition(lambda: desk.busy)
    on_first_line = Condition(lambda: desk.buffer.document.cursor_position_row == 0)
    empty = Condition(lambda: not desk.buffer.text)

    @keys.add("enter", filter=writing)
    def _send(event: KeyPressEvent) -> None:
        desk.submit()

    @keys.add("escape", "enter", filter=writing)
    @keys.add("c-j", filter=writing)
    def _new_line(event: KeyPressEvent) -> None:
        desk.buffer.insert_text("\n")

    @keys.add(Keys.BracketedPaste, filter=writing)
    def _paste(event: KeyPressEvent) -> None:
        text = event.data.replace("\r\n", "\n").replace("\r", "\n")
        desk.buffer.insert_text(desk.pastes.fold(text))

    def word_at(offset: int) -> tuple[int, int] | None:
        """The word for a paste that the character so far from the cursor is a part of."""
        return desk.pastes.span(desk.buffer.text, desk.buffer.cursor_position + offset)

    def erase_word(event: KeyPressEvent, offset: int) -> None:
        if span := word_at(offset):
            begin, desk.buffer.cursor_position = span
            desk.buffer.delete_before_cursor(desk.buffer.cursor_position - begin)

    for key, offset in (("backspace", -1), ("delete", 0)):
        there = Condition(functools.partial(lambda offset: word_at(offset) is not None, offset))
        keys.add(key, filter=writing & there)(functools.partial(erase_word, offset=offset))

    @keys.add("c-c", filter=writing)
    def _ctrl_c(event: KeyPressEvent) -> None:
        desk.ctrl_c()

    @keys.add("escape", filter=writing & waiting & ~has_completions)
    @keys.add("up", filter=writing & waiting & on_first_line & ~has_completions)
    def _take_back(event: KeyPressEvent) -> None:
        desk.take_back()

    @keys.add("escape", filter=writing & busy & ~waiting & ~has_completions)
    def _stop(event: KeyPressEvent) -> None:
        desk.stop()

    @keys.add("escape", filter=writing & has_completions)
    def _close_menu(event: KeyPressEvent) -> None:
        desk.buffer.cancel_completion()

    @keys.add("c-d", filter=writing & empty)
    def _leave(event: KeyPressEvent) -> None:
        desk.quit()

    @keys.add("c-t")
    def _fold(event: KeyPressEvent) -> None:
        desk.fold()

    @keys.add("c-l")
    def _clear_screen(event: KeyPressEvent) -> None:
        desk.clear_screen()

    @keys.add("c-z")
    def _suspend(event: KeyPressEvent) -> None:
        desk.suspend()

    @keys.add("c-x", "c-e", filter=writing)
    def _edit(event: KeyPressEvent) -> None:
        desk.buffer.text = desk.pastes.unfold(desk.buffer.text)
        desk.buffer.open_in_editor()

    return keys
