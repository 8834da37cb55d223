"""The conversation in a terminal: a prompt, an answer drawn as it comes, the prompt again.

The model loads behind the first prompt. While an answer comes the keyboard is quiet: Ctrl-C stops the
answer, other keys wait for the next prompt.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import platformdirs
from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app, run_in_terminal
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input.ansi_escape_sequences import ANSI_SEQUENCES
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.styles import Style
from rich.text import Text

from ..chat import Chat
from ..engine.base import Engine, ModelInfo
from ..errors import EXIT_OK, GlmChatError, UsageError
from ..events import LoadProgress, TurnDone
from . import tty
from .attach import attach
from .commands import is_command, matching, run_command
from .interrupt import stops_on_ctrl_c
from .progress import LoadState, wait_with_bar
from .sanitize import sanitize
from .screen import Looks, Screen, is_plain, make_console, show
from .transcript import Thought
from .wording import bar

PROMPT = "› "
_NEARLY_FULL, _FULL = 0.8, 0.95  # shares of the context
PATIENCE_S = 0.1  # after Ctrl-C the prompt is back within twice this
OpenEngine = Callable[[str], Engine]
_STYLE = Style.from_dict(
    {
        "bottom-toolbar": "noreverse #888888",
        "bottom-toolbar nearly-full": "ansiyellow",
        "bottom-toolbar full": "ansired",
        "prompt": "bold",
    }
)


def run(chat: Chat, load: LoadState, open_engine: OpenEngine, looks: Looks) -> int:
    """Talk until the person leaves; returns the exit code. Raises the fault of a model that fails to load.

    `open_engine` begins to load a model by its name, for /model; `load` hears of its progress.
    """
    console = make_console()
    with tty.borrowed(dumb=is_plain(console)):
        return Repl(chat, load, open_engine, looks).loop()


class Repl:
    """The Host of the commands, and the loop."""

    def __init__(self, chat: Chat, load: LoadState, open_engine: OpenEngine, looks: Looks) -> None:
        self.chat = chat
        self.turns: list[TurnDone] = []
        self._load = load
        self._open_engine = open_engine
        self._model_before: str | None = None  # what to go back to when a model fails to load
        self._typed: dict[str, str] = {}  # a message as it was sent, with its files → as it was typed
        self._console = make_console()
        self._dumb = is_plain(self._console)
        self._looks = looks
        self._thought = ""
        self._warned = False
        self._draft = ""
        self._leaving = False
        self._armed = False  # Ctrl-C was pressed on an empty line; a second one leaves
        self._interrupted = False  # SIGINT came after the prompt was left
        self._interruptible = self._dumb  # whether SIGINT raises
        self._loaded = False
        self._fault: Exception | None = None
        self._session: PromptSession[str] | None = None if self._dumb else self._make_session()

    def loop(self) -> int:
        self._console.print(Text("glmchat · /help lists commands and keys", style="dim"), end="\n\n")
        if self._session is not None:
            tty.keep_early_keys(self._session.input)
            self._load.changed = self._session.app.invalidate
        self._watch()
        before = signal.signal(signal.SIGINT, self._on_sigint)
        try:
            while not self._leaving:
                try:
                    self._one_turn()
                except KeyboardInterrupt:  # at a dumb terminal's prompt
                    self._console.print()
                except GlmChatError as fault:  # the model failed to load
                    if self._model_before is None:
                        raise
                    self._go_back(fault)
        except EOFError:
            pass
        finally:
            signal.signal(signal.SIGINT, before)
        return EXIT_OK

    def _on_sigint(self, *_: object) -> None:
        """Outside an answer. At the prompt Ctrl-C is a key; a signal that comes as it is left is kept."""
        self._interrupted = True
        if self._interruptible:
            raise KeyboardInterrupt

    def _one_turn(self) -> None:
        text = self._ask()
        self._armed = False
        if not text.strip():
            return
        self._console.print()
        if is_command(text):
            try:
                run_command(self, text)
            except KeyboardInterrupt:
                self._say_stopped()
            return
        try:
            message = attach(text)
        except UsageError as e:
            self._say_fault(e)
            self._draft = text
            return
        self._typed[message] = text
        self.ask(message)

    # What commands may do.

    @property
    def info(self) -> ModelInfo | None:
        return self.chat.engine.info if self._loaded and self._fault is None else None

    def say(self, text: str) -> None:
        self._console.print(Text(sanitize(text)), end="\n\n")

    def draft(self, text: str) -> None:
        self._draft = self._typed.get(text, text)

    def load_model(self, name: str) -> None:
        if self._fault is None and self._loaded:
            self._model_before = self.chat.engine.info.name
        self._open(name)
        self.say(f"Loading {name}; the conversation goes on with it.")

    def show_thought(self) -> None:
        if not self._thought:
            return self.say("No thought yet.")
        opened = replace(self._looks, show_thinking=True)
        return show(self._console, Thought(self._thought, "The newest thought"), opened)

    def quit(self) -> None:
        self._leaving = True

    # One turn.

    def ask(self, text: str) -> None:
        """One question and its answer. A question without an answer is the next prompt's draft."""
        if not self._dumb:
            tty.keep_pastes_whole()
        asked = self._questions()
        screen = Screen(self._console, self._looks)
        try:
            self.wait_for_model()
            with (
                stops_on_ctrl_c(self.chat, patience_s=PATIENCE_S),
                screen,
                closing(self.chat.send(text)) as turn,
            ):
                for event in turn:
                    screen.feed(event)
                    if isinstance(event, TurnDone):
                        self.turns.append(event)
        except KeyboardInterrupt:
            self._say_stopped()
        except GlmChatError as e:
            if self._fault is not None:
                self.draft(text)
                raise
            self._say_fault(e)
        self._warn_of_full_context()
        self._thought = screen.transcript.thought or self._thought
        if self._questions() == asked:
            self.draft(text)

    def _say_stopped(self) -> None:
        self._console.print(Text("stopped", style="yellow"), end="\n\n")

    def _say_fault(self, fault: GlmChatError) -> None:
        self._console.print(Text(sanitize(str(fault)), style="red"), end="\n\n")

    def _questions(self) -> int:
        return sum(message.role == "user" for message in self.chat.conversation)

    # The model behind the prompt.

    def wait_for_model(self) -> None:
        """Draw the bar until the model is there. Ctrl-C, even just before, raises KeyboardInterrupt."""
        if self._interrupted:
            raise KeyboardInterrupt
        if not self._loaded:
            self._interruptible = True
            try:
                wait_with_bar(self.chat, self._load)
            except GlmChatError as e:
                self._fault = e
                raise
            finally:
                self._interruptible = self._dumb

    def _open(self, name: str) -> None:
        """Begin to load a model, once the one before has freed its memory."""
        self.chat.engine.close()
        self._load.newest = LoadProgress("starting")
        self._loaded, self._fault = False, None
        self.chat.engine = self._open_engine(name)
        self._watch()

    def _go_back(self, fault: GlmChatError) -> None:
        """Another model failed to load: take the one before again."""
        self._say_fault(fault)
        name, self._model_before = self._model_before, None
        assert name is not None
        self._open(name)
        self.say(f"Back to {name}.")

    def _watch(self) -> None:
        args = (self.chat.engine,)
        threading.Thread(target=self._watch_load, args=args, name="glmchat-load-watch", daemon=True).start()

    def _watch_load(self, engine: Engine) -> None:
        fault: Exception | None = None
        try:
            _ = engine.info  # waits
        except Exception as e:
            fault = e
        if engine is not self.chat.engine:  # another was chosen meanwhile
            return
        self._fault, self._loaded = fault, True
        app = self._session.app if self._session else None
        if app is not None and app.is_running and app.loop is not None:
            app.loop.call_soon_threadsafe(self._leave_on_fault)

    def _leave_on_fault(self) -> None:
        """In the prompt: end it with the fault of loading, if there is one."""
        app = get_app()
        if self._fault is not None and not app.is_done:
            self._draft = app.current_buffer.text
            app.exit(exception=self._fault)
        app.invalidate()

    @property
    def _context_used(self) -> tuple[int, int]:
        """Tokens that the newest turn left in the context, and how many fit; zeros where that is unknown."""
        if not self.turns or self.info is None or not len(self.chat.conversation):
            return 0, 0
        usage = self.turns[-1].usage
        return usage.prompt_tokens + usage.completion_tokens, self.info.context_length

    def _warn_of_full_context(self) -> None:
        """Once, before it is full."""
        used, whole = self._context_used
        full = bool(whole) and used / whole >= _NEARLY_FULL
        if full and not self._warned:
            what = (
                "the oldest turns will no longer be sent"
                if self.chat.drop_oldest
                else "answers will end there"
            )
            self._console.print(
                Text(f"The context is {used / whole:.0%} full; when it is, {what}.", style="yellow"),
                end="\n\n",
            )
        self._warned = full

    def _toolbar(self) -> StyleAndTextTuples:
        used, whole = self._context_used
        if self._armed or not whole:
            return [("", self._status())]
        share = used / whole
        style = "class:full" if share >= _FULL else "class:nearly-full" if share >= _NEARLY_FULL else ""
        return [("", f"{self._status()} · "), (style, f"{bar(share, 8)} {used:,} of {whole:,} tokens")]

    def _status(self) -> str:
        if self._armed:
            return "Ctrl-C again leaves"
        thinking = "thinking on" if self.chat.options.enable_thinking else "thinking off"
        if not self._loaded:
            return f"{self._load.text()} · {thinking}"
        info = self.info
        if info is None:
            return ""
        return sanitize(" · ".join(part for part in (info.name, info.device, thinking) if part))

    # The prompt.

    def _ask(self) -> str:
        """The next thing the person says."""
        self._interrupted = False
        if self._session is None:
            return input(PROMPT)
        draft, self._draft = self._draft, ""
        return self._session.prompt(PROMPT, default=draft, pre_run=self._leave_on_fault, handle_sigint=False)

    def _make_session(self) -> PromptSession[str]:
        return PromptSession(
            history=open_history(),
            tempfile_suffix=".md",
            multiline=True,
            key_bindings=self._keys(),
            bottom_toolbar=self._toolbar,
            prompt_continuation=" " * len(PROMPT),
            completer=_Completer(),
            complete_while_typing=True,
            reserve_space_for_menu=4,
            style=_STYLE,
            enable_suspend=True,
        )

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()
        here = has_focus(DEFAULT_BUFFER)

        @keys.add("enter", filter=here)
        def _send(event: KeyPressEvent) -> None:
            if event.current_buffer.text.strip():
                event.current_buffer.validate_and_handle()

        @keys.add("escape", "enter", filter=here)
        @keys.add("c-j", filter=here)
        def _new_line(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @keys.add("c-c", filter=here)
        def _clear_or_leave(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if buffer.text:
                buffer.reset()
            elif self._armed:
                event.app.exit(exception=EOFError())
            else:
                self._armed = True
                buffer.on_text_changed += self._disarm

        @keys.add("c-x", "c-e", filter=here)
        def _edit(event: KeyPressEvent) -> None:
            event.current_buffer.open_in_editor()

        @keys.add("c-t")
        def _thought(event: KeyPressEvent) -> None:
            run_in_terminal(self.show_thought)

        return keys

    def _disarm(self, buffer: Buffer) -> None:
        self._armed = False
        buffer.on_text_changed -= self._disarm


# Shift-Enter, from terminals that tell it from Enter, is Alt-Enter.
for _sequence in ("\x1b[27;2;13~", "\x1b[13;2u"):
    ANSI_SEQUENCES[_sequence] = (Keys.Escape, Keys.ControlM)


class _Completer(Completer):
    """Completes commands at the start of the line, their arguments, and paths after `@`."""

    _paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        before = document.text_before_cursor
        if re.fullmatch(r"/\w*", before):
            for command in matching(before):
                yield Completion(command.name, -len(before), display_meta=command.help)
        elif argument := re.fullmatch(r"(/\w+) +(\S*)", before):
            for command in matching(argument[1]):
                if command.takes_path:
                    yield from self._path(argument[2], complete_event)
                for choice in command.choices:
                    if choice.startswith(argument[2]):
                        yield Completion(choice, -len(argument[2]))
        if path := re.search(r'(?<!\S)@"?([^"\s]*)$', before):
            yield from self._path(path[1], complete_event)

    def _path(self, begun: str, event: CompleteEvent) -> Iterable[Completion]:
        return self._paths.get_completions(Document(begun), event)


def open_history() -> History:
    """The person's own history file (mode 0600); without one to write to, a history for this run."""
    folder = Path(platformdirs.user_state_dir("glmchat", appauthor=False))
    path = folder / "history"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
        path.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))
