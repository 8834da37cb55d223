"""The conversation in a terminal. Input is alive while the model loads, reads, thinks and writes.

Turns run in a thread of their own; their events are drawn in the event loop of the input, paced by what
drawing costs. What is sent meanwhile is queued.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from queue import SimpleQueue

from prompt_toolkit.formatted_text import StyleAndTextTuples

from ..chat import Chat
from ..engine.base import Engine, ModelInfo
from ..errors import EXIT_OK, EXIT_TERMINATED, GlmChatError
from ..events import Event, LoadProgress, ToolDone, TurnDone
from ..tools.approve import Answer as ApprovalAnswer
from ..tools.approve import No, Request, Yes
from . import tty
from .approval import CHOICES, is_no, read_answer, read_arguments, written_arguments
from .attach import attach, attached, not_attached
from .commands import find_command, is_command, run_command
from .completion import Commands
from .early import GREETING, PROMPT, PROMPT_AT_ONCE
from .history import open_history, remember
from .inline import Inline
from .keys import bindings
from .pastes import Pastes
from .progress import LoadState
from .sanitize import sanitize
from .screen import SPIN_S, Looks, Screen, load_markdown, make_console
from .toolbar import NEARLY_FULL, Part, context_parts, fitted, load_parts
from .transcript import Note, Said
from .wording import count, endless_text, first_line, request_text

OpenEngine = Callable[[str], Engine]
_QUEUED_CELLS = 60  # of a queued message that are shown
_LEAVING_S = 3.0  # is what the last turn may take to end; one step of a large model is not waited for
_READ_AHEAD_S = 0.05  # at least, between two looks at what is typed, for the model to read it ahead
_LONGEST_AHEAD = 100_000  # characters read ahead of a message: some 0.1 s to make tokens of
_SETTLED_S = 0.1  # a size that has stood this long is not one of a window being dragged


@dataclass(frozen=True, slots=True)
class _Asked:
    """A call waits for the person's word, in the turns' thread."""

    request: Request
    reply: SimpleQueue[ApprovalAnswer]


@dataclass(frozen=True, slots=True)
class _TurnEnded:
    """What the turns' thread says last of each turn."""

    message: str
    fault: Exception | None


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What the watching thread says when an engine has its model, or never will."""

    engine: Engine
    fault: Exception | None


@dataclass(frozen=True, slots=True)
class _Told:
    """What another thread has to say."""

    text: str


class App:
    """The Host of the commands; everything but `_post`, `_work` and `_watch` runs in the event loop."""

    def __init__(self, chat: Chat, load: LoadState, open_engine: OpenEngine, looks: Looks) -> None:
        self.chat = chat
        self.turns: list[TurnDone] = []
        self.calls: list[tuple[datetime, ToolDone]] = []
        self.queued: list[str] = []
        self.running: str | None = None
        """The message that is being answered, files and all."""
        self.armed = False
        """Ctrl-C was pressed on an empty line; a second one leaves."""
        self._asked: _Asked | None = None
        self._editing = False  # the line holds the arguments of the call that is asked about
        self._stopping = False
        self._questions_before = 0
        self._screen = Screen(make_console(), looks)
        self._load = load
        self._open_engine = open_engine
        self._model_before: str | None = None  # what to go back to when a model fails to load
        self._back = False  # that is what loads now
        self._typed: dict[str, str] = {}  # a message as it was sent, with its files → as it was typed
        self.pastes = Pastes()
        self._loaded = False
        self._code = EXIT_OK
        self._fault: Exception | None = None
        self._warned = False
        self._inbox: deque[Event | _Asked | _TurnEnded | _Loaded | _Told] = deque()
        self._messages: SimpleQueue[str | None] = SimpleQueue()  # None: the person leaves
        self._awake = False
        self._resizing: asyncio.TimerHandle | None = None
        self._spinning: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None
        self._read_at = 0.0
        self._inline = Inline(
            keys=bindings(self),
            prompt=lambda: PROMPT if self.chat.options.enable_thinking else PROMPT_AT_ONCE,
            toolbar=self._toolbar,
            notes=self._notes,
            history=open_history(),
            completer=Commands(lambda: [tool.name for tool in chat.toolbox.tools]),
            on_resize=self._on_resize,
            on_fault=lambda text: self._post(_Told(text)),
        )
        chat.approvals.ask = self._ask
        self.buffer = self._inline.buffer
        self.buffer.on_text_changed += self._on_typed

    def run(self, begin: Callable[[], str] = tty.typed_before) -> int:
        """Talk until the person leaves; returns the exit code. Raises what loading raised.

        `begin` is called when the line is about to be drawn, and gives what was typed before.
        """
        try:
            asyncio.run(self._run(begin))
        except EOFError:  # the terminal is gone
            self._code = EXIT_TERMINATED
        if self._fault is not None:
            raise self._fault
        return self._code

    async def _run(self, begin: Callable[[], str]) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_signal_handler(signal.SIGINT, self.ctrl_c)
        for number in tty.ending_signals():
            self._loop.add_signal_handler(number, self._terminate)
        self._screen.add(Note(GREETING))
        self._load.changed = self._inline.app.invalidate
        turns = threading.Thread(target=self._work, name="glmchat-turns", daemon=True)
        turns.start()
        self._watch()
        self._inline.app.after_render += self._import_rest
        self._inline.begin(begin(), self._screen.frame)
        try:
            await self._inline.app.run_async(handle_sigint=False, pre_run=self._draw_soon)
        finally:
            self._load.changed = lambda: None
            self.stop()
            self._messages.put(None)
            turns.join(_LEAVING_S)  # a tool that runs is ended, whatever it does
            self.queued.clear()
            self._take_in()
            self._screen.end()
            self._inline.write_last(self._screen.frame)

    # What keys do.

    @property
    def busy(self) -> bool:
        return self.running is not None

    def submit(self) -> None:
        """The line is sent: it is done now, or queued behind what is being done."""
        self.armed = False
        text = self.buffer.text
        if not text.strip():
            return
        if self._asked is not None and not is_command(text):
            self._answer(text)
        else:
            remember(self.buffer.history, self.pastes.unfold(text))
            self.buffer.reset()
            command = find_command(text) if is_command(text) else None
            at_once = command is not None and not command.waits
            if at_once or (self.running is None and self._loaded and not self.queued):
                self._do(text)
            else:
                self.queued.append(text)
        self._draw_soon()

    def ctrl_c(self) -> None:
        if self.running is not None:
            self.stop()
        elif self.queued:
            self.take_back()
        elif self.buffer.text:
            self.buffer.reset()
        elif self.armed:
            self.quit()
        else:
            self.armed = True
        self._inline.app.invalidate()

    def _on_typed(self, _: object) -> None:
        self.armed = False
        if self._reading is None:
            self._reading = self._loop.call_at(self._read_at + _READ_AHEAD_S, self._read_ahead)

    def stop(self) -> None:
        """End the running turn soon; what came is kept."""
        self._stopping = True
        self.chat.cancel()
        if self._asked is not None:
            self._reply(No("the person stopped the turn"))

    def _answer(self, text: str) -> None:
        """The line answers whether a call may run."""
        assert self._asked is not None
        text = self.pastes.unfold(text)
        self.buffer.reset()
        if self._editing:
            if is_no(text):
                self._editing = False
                return None
            try:
                return self._reply(Yes(arguments=read_arguments(text)))
            except ValueError as e:
                self._screen.add(Note(f"This is no JSON object: {e}", "fault"))
                return self.draft(text)
        answer = read_answer(text)
        if answer is not None:
            return self._reply(answer)
        self._editing = True  # the arguments go into the line, to be changed and sent
        return self.draft(written_arguments(self._asked.request.call))

    def _reply(self, answer: ApprovalAnswer) -> None:
        if self._asked is not None:
            self._asked.reply.put(answer)
        self._asked, self._editing = None, False
        self._draw_soon()

    def take_back(self) -> None:
        """The newest queued message goes back into the line."""
        if self.queued:
            self.draft(self.queued.pop())

    def suspend(self) -> None:
        self._inline.suspend(then=self._screen.leave_rows)  # the shell has written below them

    def fold(self) -> None:
        """Open or fold all thoughts and calls."""
        self.unfold(not self._screen.looks.unfolded)

    # What commands may do.

    @property
    def info(self) -> ModelInfo | None:
        return self.chat.engine.info if self._loaded and self._fault is None else None

    def say(self, text: str) -> None:
        self._screen.add(Note(sanitize(text), "plain"))

    def draft(self, text: str) -> None:
        text = self._typed.get(text, text)
        self.buffer.text = f"{text}\n{self.buffer.text}" if self.buffer.text else text
        self.buffer.cursor_position = len(self.buffer.text)

    def ask(self, text: str) -> None:
        self.running, self._stopping = text, False
        self._questions_before = sum(m.role == "user" for m in self.chat.conversation)
        self._screen.begin()
        self._messages.put(text)

    def unfold(self, shown: bool) -> None:
        self._screen.looks = replace(self._screen.looks, unfolded=shown)
        self._inline.write_above(self._screen.anew)

    def load_model(self, name: str) -> None:
        info = self.info
        self._model_before = info.name if info else self._model_before
        self._open(name)
        self.say(f"Loading {name}; the conversation goes on with it.")

    def clear_screen(self) -> None:
        self._screen.forget_rows()
        self._inline.clear()

    def quit(self) -> None:
        if self._inline.app.is_running and not self._inline.app.is_done:
            self._inline.app.exit()

    def _terminate(self) -> None:
        self._code = EXIT_TERMINATED
        self.quit()

    # One line after the other.

    def _do(self, text: str) -> None:
        self._screen.add(Said(sanitize(text)))
        if note := self.pastes.stray(text):
            self._screen.add(Note(sanitize(note), "warning"))
        if is_command(text):
            run_command(self, self.pastes.unfold(text))
            self._read_ahead()
            return
        try:
            message = attach(self.pastes.unfold(text), text)
        except GlmChatError as e:
            self._screen.add(Note(sanitize(str(e)), "fault"))
            self.draft(text)
            return
        for note in filter(None, (attached(text), not_attached(text))):
            self._screen.add(Note(sanitize(note)))
        self._typed[message] = text
        self.ask(message)

    def _next(self) -> None:
        while self.queued and self._loaded and self._fault is None and self.running is None:
            self._do(self.queued.pop(0))
        self._read_ahead()

    def _read_ahead(self) -> None:
        """While the person types, the model reads: what the message follows, and what there is of it."""
        self._reading, self._read_at = None, self._loop.time()
        if self.running is None and self.info is not None:
            text = self.buffer.text
            begun = "" if is_command(text) else self.pastes.unfold(text)
            self.chat.prepare(begun[:_LONGEST_AHEAD])

    def _turn_ended(self, ended: _TurnEnded) -> None:
        self._screen.end()
        self.running = None
        questions = sum(m.role == "user" for m in self.chat.conversation)
        answered = questions > self._questions_before
        if ended.fault is not None and not isinstance(ended.fault, GlmChatError):
            raise ended.fault
        if ended.fault is not None:
            self._screen.add(Note(sanitize(str(ended.fault)), "fault"))
        self._warn_of_full_context()
        if not answered:
            self.draft(ended.message)
        self._next()

    def _warn_of_full_context(self) -> None:
        """Once, before it is full."""
        used, whole = self._context_used
        full = bool(whole) and used / whole >= NEARLY_FULL
        if full and not self._warned:
            drops = self.chat.drop_oldest
            what = "the oldest turns will no longer be sent" if drops else "answers will end there"
            text = f"The context is {used / whole:.0%} full; when it is, {what}."
            self._screen.add(Note(text, "warning"))
        self._warned = full

    # The threads beside the event loop.

    def _work(self) -> None:
        while (message := self._messages.get()) is not None:
            fault: Exception | None = None
            try:
                with closing(self.chat.send(message)) as turn:
                    for event in turn:
                        self._post(event)
            except Exception as e:
                fault = e
            self._post(_TurnEnded(message, fault))

    def _ask(self, request: Request) -> ApprovalAnswer:
        """Asks the person, and waits; in the turns' thread."""
        asked = _Asked(request, SimpleQueue())
        self._post(asked)
        return asked.reply.get()

    def _watch(self) -> None:
        engine = self.chat.engine

        def wait() -> None:
            fault: Exception | None = None
            try:
                _ = engine.info
            except Exception as e:
                fault = e
            self._post(_Loaded(engine, fault))

        threading.Thread(target=wait, name="glmchat-load-watch", daemon=True).start()

    def _post(self, item: Event | _Asked | _TurnEnded | _Loaded | _Told) -> None:
        self._inbox.append(item)
        waited_for = isinstance(item, _TurnEnded | _Asked)  # by the person: it comes at once
        if waited_for or not self._awake:
            self._awake = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: the person has left
                self._loop.call_soon_threadsafe(self._draw if waited_for else self._draw_soon)

    def _import_rest(self, _: object) -> None:
        """The prompt stands: what draws answers is imported while the person types."""
        self._inline.app.after_render -= self._import_rest
        threading.Thread(target=load_markdown, daemon=True).start()

    # Drawing.

    def _draw_soon(self) -> None:
        self._awake = True
        self._loop.call_later(max(0.0, self._screen.draw_at - time.monotonic()), self._draw)

    def _draw(self) -> None:
        if self._inline.app.is_lent:
            self._loop.call_later(SPIN_S, self._draw)
            return
        try:
            self._take_in()
            if self._inline.app.is_running and not self._inline.app.is_done:
                began = time.thread_time()
                self._inline.write_above(self._screen.frame)
                self._screen.drawn(time.thread_time() - began)
                self._keep_spinning()
        except Exception as e:  # an event loop would only log it
            self._fault = e
            self.quit()

    def _keep_spinning(self) -> None:
        """While nothing else comes that would be drawn."""
        if self._spinning is not None:
            self._spinning.cancel()
        wait = max(SPIN_S, self._screen.draw_at - time.monotonic())
        self._spinning = self._loop.call_later(wait, self._draw) if self._screen.spins else None

    def _take_in(self) -> None:
        self._awake = False
        while self._inbox:
            item = self._inbox.popleft()
            match item:
                case _Asked():
                    self._asked = item
                    self._screen.add(Note(sanitize(request_text(item.request)), "plain"))
                    if self._stopping:
                        self._reply(No("the person stopped the turn"))
                case _TurnEnded():
                    self._turn_ended(item)
                case _Loaded():
                    self._on_loaded(item)
                case _Told(text):
                    self._screen.add(Note(text, "fault"))
                case _:
                    if isinstance(item, TurnDone):
                        self.turns.append(item)
                    elif isinstance(item, ToolDone):
                        self.calls.append((datetime.now(), item))
                    self._screen.feed(item)

    def _on_resize(self) -> None:
        """Draw the region at once, and all that is seen once the size has settled."""
        if self._resizing is not None:
            self._resizing.cancel()
        self._resizing = self._loop.call_later(_SETTLED_S, self._settled)

    def _settled(self) -> None:
        if self._inline.app.is_lent:
            self._on_resize()
            return
        self._resizing = None
        self._inline.write_above(self._screen.reflowed)

    # The model.

    def _open(self, name: str) -> None:
        """Begin to load a model, once the one before has freed its memory."""
        self.chat.engine.close()
        self._load.newest = LoadProgress("starting")
        self._loaded, self._fault = False, None
        try:
            self.chat.engine = self._open_engine(name)
        except GlmChatError as e:
            self._post(_Loaded(self.chat.engine, e))
        else:
            self._watch()

    def _on_loaded(self, loaded: _Loaded) -> None:
        if loaded.engine is not self.chat.engine:  # another was chosen meanwhile
            return
        self._loaded, fault = True, loaded.fault
        back, self._back = self._back, False
        if fault is None:
            if text := endless_text(loaded.engine.info):
                self.say(text)
            self._next()
        elif self._model_before is None or not isinstance(fault, GlmChatError):
            self._fault = fault
            self.quit()
        else:
            self._screen.add(Note(sanitize(str(fault)), "fault"))
            if back:
                self._fault = fault
                self.say("There is no model now; /model NAME loads one.")
            else:
                self._back = True
                self._open(self._model_before)
                self.say(f"Back to {self._model_before}.")

    # The notes above the line, and the toolbar.

    def _notes(self) -> StyleAndTextTuples:
        lines: StyleAndTextTuples = []
        if self._editing:
            lines.append(("class:asked", "  The arguments; Enter runs the call with them, n goes back"))
        elif self._asked is not None:
            lines.append(("class:asked", f"  Run {sanitize(self._asked.request.tool.name)}?  {CHOICES}"))
        lines += [("class:queued", f"  queued: {first_line(text, _QUEUED_CELLS)}") for text in self.queued]
        return [part for line in lines for part in (("", "\n"), line)][1:]

    @property
    def _context_used(self) -> tuple[int, int]:
        """Tokens that the newest turn left in the context, and how many fit; zeros where that is unknown."""
        asked = any(message.role == "user" for message in self.chat.conversation)
        if not self.turns or self.info is None or not asked:
            return 0, 0
        return self.turns[-1].context_tokens, self.info.context_length

    def _toolbar(self, columns: int) -> StyleAndTextTuples:
        return fitted(self._status(), columns)

    def _status(self) -> list[Part]:
        if self.armed:
            return [Part(0, "Ctrl-C again leaves")]
        if self._stopping and self.running is not None:
            return [Part(0, "stopping …")]
        thinking = Part(0, "thinking on" if self.chat.options.enable_thinking else "thinking off")
        if not self._loaded:
            return [*load_parts(self._load.newest), thinking]
        if (info := self.info) is None:
            return [thinking]
        parts = [Part(3, sanitize(info.name)), Part(5, sanitize(info.device)), thinking]
        if self.chat.tools:
            parts.append(Part(4, count(len(self.chat.tools), "tool")))
        return [part for part in (*parts, *context_parts(*self._context_used)) if part.text]
