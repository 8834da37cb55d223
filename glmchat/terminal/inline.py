"""The lower edge of the terminal: the line that is being written and a toolbar, with all else written above.

No alternate screen: what is written above scrolls into the terminal's own scrollback.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prompt_toolkit.application import Application, run_in_terminal
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import Completer
from prompt_toolkit.filters import Condition, has_completions, is_searching
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import History
from prompt_toolkit.input import Input
from prompt_toolkit.input.typeahead import store_typeahead
from prompt_toolkit.key_binding import KeyBindingsBase
from prompt_toolkit.layout import (
    BufferControl,
    ConditionalContainer,
    Dimension,
    FormattedTextControl,
    HSplit,
    Layout,
    Window,
)
from prompt_toolkit.layout.menus import CompletionsMenu
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.styles import Style
from prompt_toolkit.widgets import SearchToolbar

_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"  # synchronized output: the terminal shows it in one go
_MOST_INPUT_ROWS = 10
_STYLE = Style.from_dict(
    {
        "toolbar": "#888888",
        "toolbar.nearly-full": "ansiyellow",
        "toolbar.full": "ansired",
        "prompt": "bold",
        "queued": "#888888 italic",
        "asked": "bold ansiyellow",
    }
)


class Frames(Vt100_Output):
    """Writes what belongs together in one go."""

    _together = False

    @classmethod
    def on_terminal(cls) -> Frames:
        made = cls.from_pty(sys.stdout, os.environ.get("TERM"), default_color_depth=ColorDepth.from_env())
        assert isinstance(made, cls)
        return made

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        self._together = True
        self.write_raw(_BEGIN)
        try:
            yield
        finally:
            self.write_raw(_END)
            self._together = False
            self.flush()

    def flush(self) -> None:
        if not self._together:
            super().flush()


class Inline:
    """The input line and the toolbar. `write_above` puts text over them."""

    def __init__(
        self,
        *,
        keys: KeyBindingsBase,
        prompt: Callable[[], str],
        toolbar: Callable[[int], StyleAndTextTuples],
        notes: Callable[[], StyleAndTextTuples],
        history: History,
        completer: Completer,
        on_resize: Callable[[], None],
        on_fault: Callable[[str], None],
        output: Frames | None = None,
        keyboard: Input | None = None,
    ) -> None:
        """`notes` stand above the line. `prompt` is two cells wide; `toolbar` is told how many it may take.
        `on_fault` hears, in another thread, why there is nothing to take from an editor.

        `output` and `keyboard` are the terminal of this process, unless others are given.
        """
        self.output = output or Frames.on_terminal()
        self.output.enable_cpr = False  # the region is as high as it is; nobody needs to know where it stands
        self.buffer = _Line(
            on_fault,
            completer=completer,
            complete_while_typing=True,
            history=history,
            multiline=True,
            enable_history_search=False,
            tempfile_suffix=".md",
        )
        search = SearchToolbar()
        entry = Window(
            BufferControl(
                self.buffer,
                search_buffer_control=search.control,
                preview_search=True,
            ),
            height=lambda: Dimension(min=1, max=max(1, min(_MOST_INPUT_ROWS, self.rows - 3))),
            wrap_lines=True,
            dont_extend_height=True,
            get_line_prefix=lambda line, wrap: [("class:prompt", "  " if line or wrap else prompt())],
        )

        body = HSplit(
            [
                ConditionalContainer(
                    Window(FormattedTextControl(notes), dont_extend_height=True, wrap_lines=True),
                    Condition(lambda: bool(notes())),
                ),
                entry,
                search,
                ConditionalContainer(CompletionsMenu(max_height=6), has_completions & ~is_searching),
                Window(FormattedTextControl(lambda: toolbar(self.columns), style="class:toolbar"), height=1),
            ]
        )
        self.app = _Application(
            self._resized,
            layout=Layout(body, focused_element=entry),
            key_bindings=keys,
            style=_STYLE,
            output=self.output,
            input=keyboard,
            erase_when_done=True,
            terminal_size_polling_interval=None,  # its signal is enough
            min_redraw_interval=1 / 30,
            enable_page_navigation_bindings=False,
        )
        self._on_resize = on_resize
        self.app.ttimeoutlen = 0.05  # Esc is a key of its own
        self.app.timeoutlen = 0.2

    @property
    def rows(self) -> int:
        return self.output.get_size().rows

    @property
    def columns(self) -> int:
        return self.output.get_size().columns

    def write_above(self, draw: Callable[[int], str]) -> None:
        """In the event loop: erase the region, write, draw the region below, all in one go.

        `draw` is given the rows that are free above the region.
        """
        self.app.follow_size()
        size = self.output.get_size()
        region = self.app.layout.container.preferred_height(size.columns, size.rows).preferred
        with self.output.together():
            self.app.renderer.erase(leave_alternate_screen=False)
            self.output.write_raw(draw(max(0, size.rows - region - 1)).replace("\n", "\r\n"))
            self.app._redraw()  # at once: `invalidate` would draw in another frame

    def begin(self, typed: str, draw: Callable[[int], str]) -> None:
        """Before the region is drawn for the first time: take keys that were pressed already, as a terminal
        sends them, and write what goes out in one go with it."""
        parser: Any = vars(self.app.input)["vt100_parser"]  # what comes next may be the rest of a paste
        parser.feed(typed)
        if not parser._in_bracketed_paste:
            parser.flush()
        store_typeahead(self.app.input, self.app.input.read_keys())
        self.output.write_raw(draw(self.rows - 1).replace("\n", "\r\n"))

    def write_last(self, draw: Callable[[int], str]) -> None:
        """When the region is gone for good."""
        self.output.write_raw(draw(self.rows - 1).replace("\n", "\r\n"))
        self.output.flush()

    def suspend(self, then: Callable[[], None]) -> None:
        """Stop, with all of the job, until the shell goes on with it; `then` before anything is drawn."""

        def stop() -> None:
            os.kill(0, signal.SIGTSTP)
            then()

        run_in_terminal(stop)

    def clear(self) -> None:
        """An empty screen with the region at its top."""
        with self.output.together():
            self.output.erase_screen()
            self.output.cursor_goto(0, 0)
            self.app.renderer.reset(leave_alternate_screen=False)
            self.app._redraw()

    def _resized(self) -> None:
        """Draw the region for the new size. A terminal that was made narrower has wrapped its lines."""
        renderer, columns = self.app.renderer, max(1, self.output.get_size().columns)
        screen, cursor = renderer._last_screen, renderer._cursor_pos
        rows = cursor.x // columns
        if screen is not None:
            for y in range(cursor.y):
                row = screen.data_buffer[y]
                width = max((x + 1 for x, cell in row.items() if cell.char.strip()), default=0)
                rows += max(1, -(-width // columns))
        with self.output.together():
            self.output.write_raw(f"\x1b[{rows}A\r\x1b[J" if rows else "\r\x1b[J")
            renderer.reset(leave_alternate_screen=False)
            self.app._redraw()
        self._on_resize()


class _Line(Buffer):
    """Keeps what it holds if an editor leaves nothing that can be read."""

    def __init__(self, on_fault: Callable[[str], None], **more: Any) -> None:
        super().__init__(**more)
        self._on_fault = on_fault

    def _open_file_in_editor(self, filename: str) -> bool:
        if not super()._open_file_in_editor(filename):
            return False
        try:
            Path(filename).read_bytes().decode()
        except (OSError, UnicodeDecodeError) as e:
            Path(filename).touch()  # to be removed
            left = "a text that is not UTF-8" if isinstance(e, UnicodeDecodeError) else "no file"
            self._on_fault(f"The editor left {left}; the line is as it was.")
            return False
        return True


class _Application(Application[Any]):
    """Leaves it to us what a new size of the terminal means."""

    def __init__(self, resized: Callable[[], None], **more: Any) -> None:
        super().__init__(**more)
        self._resized = resized

    def follow_size(self) -> None:
        """Draw the region anew if the terminal has another size by now: its signal may still be on the way,
        and what is written in the meantime would begin at the wrong row."""
        if self.renderer._last_size not in (None, self.output.get_size()):
            self._resized()

    def _redraw(self, render_as_done: bool = False) -> None:
        if not render_as_done:
            self.follow_size()
        super()._redraw(render_as_done)

    def _on_resize(self) -> None:
        if not self.is_lent:
            self._resized()

    @property
    def is_lent(self) -> bool:
        """Another program has the terminal, such as an editor."""
        return bool(self._running_in_terminal)
