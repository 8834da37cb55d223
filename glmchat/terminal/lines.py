"""The conversation on a terminal that only takes lines of text: no cursor is moved, nothing is redrawn."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import datetime

from ..chat import Chat
from ..engine.base import Engine, ModelInfo
from ..errors import EXIT_OK, GlmChatError
from ..events import ToolDone, TurnDone
from ..tools.approve import Answer, No, Request, Yes
from .approval import CHOICES, read_answer, read_arguments, written_arguments
from .attach import attach, attached, not_attached
from .commands import is_command, run_command
from .early import GREETING, PROMPT
from .interrupt import interrupts, stops_on_ctrl_c
from .sanitize import sanitize
from .screen import Looks, Screen, make_console
from .transcript import Entry, Note
from .wording import endless_text, request_text


class Lines:
    """The Host of the commands."""

    def __init__(self, chat: Chat, open_engine: Callable[[str], Engine], looks: Looks) -> None:
        self.chat = chat
        self.turns: list[TurnDone] = []
        self.calls: list[tuple[datetime, ToolDone]] = []
        self._open_engine = open_engine
        self._screen = Screen(make_console(), looks)
        self._leaving = False
        chat.approvals.ask = self._approve

    def run(self) -> int:
        """Talk until the person leaves; returns the exit code. Raises what loading raised."""
        self._print(Note(GREETING))
        self._wait()
        armed = False
        while not self._leaving:
            self.chat.prepare()
            try:
                text = _read(PROMPT)
                armed = False
                if text.strip():
                    print()
                    self._do(text)
            except EOFError:
                print()
                break
            except KeyboardInterrupt:
                print()
                if armed:
                    break
                armed = True
                self.say("Ctrl-C again leaves.")
        return EXIT_OK

    @property
    def info(self) -> ModelInfo | None:
        return self.chat.engine.info

    def say(self, text: str) -> None:
        self._print(Note(sanitize(text), "plain"))

    def draft(self, text: str) -> None:
        self.say(f"To be sent again:\n{text}")

    def unfold(self, shown: bool) -> None:
        self._screen.looks = replace(self._screen.looks, unfolded=shown)
        self.say(f"Thoughts are {'shown' if shown else 'folded'} from now on.")

    def load_model(self, name: str) -> None:
        before = self.chat.engine.info.name
        self.say(f"Loading {name}.")
        self.chat.engine.close()
        try:
            self.chat.engine = self._open_engine(name)
            self._wait()
        except GlmChatError as e:
            self.say(f"{e}\nBack to {before}.")
            self.chat.engine = self._open_engine(before)

    def _wait(self) -> None:
        """Until the model is loaded. Raises what loading raised."""
        if text := endless_text(self.chat.engine.info):
            self.say(text)

    def quit(self) -> None:
        self._leaving = True

    def ask(self, text: str) -> None:
        self._screen.begin()
        try:
            with stops_on_ctrl_c(self.chat), closing(self.chat.send(text)) as turn:
                for event in turn:
                    self._screen.feed(event)
                    self._print()
                    if isinstance(event, TurnDone):
                        self.turns.append(event)
                    elif isinstance(event, ToolDone):
                        self.calls.append((datetime.now(), event))
        except KeyboardInterrupt:
            self._print(Note("stopped", "warning"))
        except GlmChatError as e:
            self._print(Note(sanitize(str(e)), "fault"))
        self._screen.end()
        self._print()

    def _approve(self, request: Request) -> Answer:
        try:
            with interrupts():
                return self._read_answer(request)
        except KeyboardInterrupt:
            print()
            self.chat.cancel()
            return No("the person stopped the turn")

    def _read_answer(self, request: Request) -> Answer:
        self._print(Note(sanitize(request_text(request)), "plain"))
        print(f"Run {sanitize(request.tool.name)}?  {CHOICES}")
        try:
            answer = read_answer(_read(PROMPT))
            if answer is not None:
                return answer
            print(written_arguments(request.call))
            return Yes(arguments=read_arguments(_read("The arguments as they are to be: ")))
        except EOFError:
            return No()
        except ValueError as e:
            return No(f"the person's own arguments are no JSON object: {e}")

    def _do(self, text: str) -> None:
        if is_command(text):
            return run_command(self, text)
        try:
            message = attach(text)
        except GlmChatError as e:
            return self._print(Note(sanitize(str(e)), "fault"))
        for note in filter(None, (attached(text), not_attached(text))):
            self._print(Note(sanitize(note)))
        return self.ask(message)

    def _print(self, *entries: Entry) -> None:
        self._screen.add(*entries)
        print(self._screen.added(), end="", flush=True)


def _read(prompt: str) -> str:
    """A line. Python's own `input` would write the prompt to stderr."""
    print(prompt, end="", flush=True)
    return input()
