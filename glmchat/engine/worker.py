"""The engine in a process of its own: keys never wait for torch, drawing and decoding share no lock, and an
engine that dies takes nothing with it.

Over a socket pair go pickled requests (number, method, pickled arguments) to the process and (number, value)
back: for number 0 how the load goes, for the others what came of that request, if somebody waits for it. The
process ends when its end of the pair is all that is left.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pickle
import queue
import signal
import threading
import traceback
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from ..errors import GlmChatError, ModelError
from ..events import Event, LoadProgress, TurnDone
from ..messages import Conversation, Message
from .base import CLOSED, GenerationOptions, ModelInfo, ready
from .faults import explain
from .memory import LoadOptions
from .process import ENDING_S, Child, connect
from .progress import OnProgress

if TYPE_CHECKING:
    from ..glm.encode import Prompt
    from .local import LocalEngine  # brings much along that only the child needs

log = logging.getLogger(__name__)

LOOK_S = 0.05
"""How often a turn that gives no events looks whether it was cancelled."""
_LOAD, _NOBODY = 0, -1


class WorkerEngine:
    """Implements Engine with a LocalEngine in a child process. The constructor returns at once.

    `wait`, `info` and `generate` raise what loading raised. Should the process die, the running turn raises a
    ModelError, and the next one starts another, whose load it reports by LoadProgress events. A turn that it
    had not begun to answer is given to another at once.
    """

    def __init__(
        self,
        model: str,
        options: LoadOptions | None = None,
        *,
        chat_template: str = "auto",
        on_progress: OnProgress | None = None,
    ) -> None:
        options = options or LoadOptions()
        options.check()  # what cannot be done is told at once
        self._start = functools.partial(_Process, model, options, chat_template, on_progress)
        self._process = self._start()
        self._info: ModelInfo | None = None
        self._closed = False
        self._lock = threading.Lock()

    def wait(self) -> ModelInfo:
        """Block until the model is loaded. Raises what loading raised."""
        if self._info is None:
            self._info = self._process.wait()
        return self._info

    @property
    def info(self) -> ModelInfo:
        """What was loaded; waits for it."""
        return self.wait()

    @property
    def pid(self) -> int:
        """The process that runs the model now."""
        return self._process.pid

    def generate(
        self,
        conversation: Conversation,
        *,
        tools: Sequence[dict[str, Any]] = (),
        options: GenerationOptions | None = None,
        cancel: threading.Event | None = None,
    ) -> Generator[Event, None, None]:
        """One turn; see Engine.generate."""
        cancel = cancel or threading.Event()
        asked = conversation, tuple(tools), options
        process = self._living()
        # It may be gone and nobody knows yet; but not twice, since then the turn may be what it dies of.
        unheard = yield from self._turn(process, asked, cancel, may_be_gone=not process.is_loading)
        if unheard:
            yield from self._turn(self._living(), asked, cancel)

    def _living(self) -> _Process:
        """The process that runs the model, another where the one before is gone."""
        with self._lock:
            if self._closed:
                raise ModelError(CLOSED)
            if self._info is not None and self._process.fault is not None:  # it did run: try another
                self._process.close()
                self._process = self._start(again=True)
            return self._process

    def _turn(
        self, process: _Process, asked: tuple[Any, ...], cancel: threading.Event, *, may_be_gone: bool = False
    ) -> Generator[Event, None, bool]:
        """The turn's events. True: there are none, because the process was gone, which it might be."""
        for progress in process.loading():
            if cancel.is_set():
                yield TurnDone(Message("assistant", "", interrupted=True), "interrupted")
                return False
            yield progress
        self.wait()
        with process.request("generate", *asked) as (number, replies):
            stopping = False
            try:
                while True:
                    if cancel.is_set() and not stopping:
                        stopping = True
                        process.send(number, "cancel")
                    try:
                        reply = replies.get(timeout=None if stopping else LOOK_S)
                    except queue.Empty:
                        continue
                    if reply is None:
                        return False
                    if may_be_gone and reply is process.fault:
                        return True
                    may_be_gone = False
                    yield _checked(reply)
            finally:
                process.send(number, "cancel")

    def prepare(
        self,
        conversation: Conversation,
        *,
        tools: Sequence[dict[str, Any]] = (),
        options: GenerationOptions | None = None,
    ) -> None:
        """See Engine.prepare."""
        self._process.send(_NOBODY, "prepare", conversation, tuple(tools), options)

    def render(
        self,
        conversation: Conversation,
        *,
        tools: Sequence[dict[str, Any]] = (),
        options: GenerationOptions | None = None,
    ) -> Prompt:
        """The exact prompt; see Engine.render. Raises ModelError while another process loads."""
        name = self.wait().name
        if self._process.is_loading:
            raise ModelError(f"{name} is being loaded again; ask when it is there.")
        with self._process.request("render", conversation, tuple(tools), options) as (_, replies):
            prompt: Prompt = _checked(replies.get())
        return prompt

    def close(self) -> None:
        """End the process; it frees the model. Idempotent."""
        with self._lock:
            self._closed = True
        self._process.close()

    def __enter__(self) -> WorkerEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_worker(model: str, options: LoadOptions, *, chat_template: str = "auto") -> WorkerEngine:
    """As `open_local`, in a child process."""
    return ready(WorkerEngine(model, options, chat_template=chat_template))


@dataclass(frozen=True, slots=True)
class _Fault:
    """An error as it travels; its traceback is for --debug."""

    error: GlmChatError
    traceback: str = ""


def _checked(reply: Any) -> Any:
    if isinstance(reply, _Fault):
        raise reply.error from (Exception(reply.traceback) if reply.traceback else None)
    return reply


class _Process:
    """One child process, from its start to its end."""

    def __init__(
        self,
        model: str,
        options: LoadOptions,
        chat_template: str,
        on_progress: OnProgress | None,
        *,
        again: bool = False,
    ) -> None:
        """`again`: the model ran before. Raises ModelError: the system gives no process."""
        self._model = model
        self._ran = again
        self._on_progress = on_progress or (lambda _: None)
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._outgoing: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._requests = 0
        self._replies: dict[int, queue.SimpleQueue[Any]] = {}
        self._loaded = threading.Event()
        self._newest = LoadProgress("starting")
        self._info: ModelInfo | None = None
        self.fault: _Fault | None = None
        """Why nothing more will come of it."""
        self._closing = False
        try:
            self._child = Child(__name__)
        except OSError as e:
            raise ModelError(explain(model, e, "its process was started")) from e
        self.pid = self._child.pid
        self._connection = self._child.connection
        self._send((model, options, chat_template))
        for work, name in ((self._write, "writer"), (self._read, "reader")):
            threading.Thread(target=work, name=f"glmchat-worker-{name}", daemon=True).start()

    def wait(self) -> ModelInfo:
        """Block until the model is loaded. Raises what loading raised."""
        self._loaded.wait()
        if self._info is None:
            _checked(self.fault)
        assert self._info is not None
        return self._info

    @property
    def is_loading(self) -> bool:
        return not self._loaded.is_set()

    def loading(self) -> Iterator[LoadProgress]:
        """How the load goes, now and then until it is done. Raises what loading raised."""
        while not self._loaded.wait(LOOK_S):
            yield self._newest
        self.wait()

    @contextlib.contextmanager
    def request(self, method: str, *args: Any) -> Iterator[tuple[int, queue.SimpleQueue[Any]]]:
        """Send a request: its number and the queue of its replies; that it is gone is one."""
        with self._lock:
            self._requests += 1
            number = self._requests
            replies = self._replies[number] = queue.SimpleQueue()
            if self.fault is not None:
                replies.put(self.fault)
        try:
            self.send(number, method, *args)
            yield number, replies
        finally:
            with self._lock:
                self._replies.pop(number, None)

    def send(self, number: int, method: str, *args: Any) -> None:
        self._send((number, method, pickle.dumps(args)))

    def close(self) -> None:
        """End it. A load is not waited for: what is imported cannot be stopped."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        self._send(None)
        if self._loaded.is_set():
            self._child.end()

    def _send(self, message: object) -> None:
        self._outgoing.put(message)

    def _write(self) -> None:
        """The thread that sends: nobody else waits for a process that does not read, stopped perhaps."""
        message: object = self
        while message is not None:
            message = self._outgoing.get()
            with self._sending, contextlib.suppress(OSError):  # it is gone: the reader finds out
                self._connection.send(message)

    def _read(self) -> None:
        """The thread that hands out what comes back, and tells everyone when nothing more will."""
        try:
            while True:
                self._take(*self._connection.recv())
        except (EOFError, OSError):
            pass  # it is gone, or about to be
        except Exception:
            log.debug("what the process sent cannot be read", exc_info=True)
            self._child.kill()
        how = self._child.ended()
        with self._lock:
            if self.fault is None:
                self.fault = _Fault(ModelError(CLOSED if self._closing else self._epitaph(how)))
            waiting = list(self._replies.values())
        with self._sending:
            self._child.close()
        self._loaded.set()
        for replies in waiting:
            replies.put(self.fault)

    def _take(self, number: int, value: Any) -> None:
        if number != _LOAD:
            with self._lock:
                replies = self._replies.get(number)
            if replies is not None:
                replies.put(value)
        elif isinstance(value, LoadProgress):
            self._newest = value
            with contextlib.suppress(Exception):  # whoever shows it may have gone
                self._on_progress(value)
        else:
            if isinstance(value, ModelInfo):
                self._info, self._ran = value, True
            else:
                self.fault = value
            self._loaded.set()

    def _epitaph(self, how: str) -> str:
        kept = "what was said is kept, and the next message starts it again" if self._ran else "nothing runs"
        return f"The process that runs {self._model} {how}; {kept}."


def serve(fd: int) -> None:
    """What the child process does: run a LocalEngine for whoever is at the other end of the socket `fd`."""
    connection = connect(fd)
    model, options, chat_template = connection.recv()
    _Server(connection).run(model, options, chat_template)
    os._exit(0)  # torch has nothing to say any more, and takes its time


class _Server:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._turns: queue.SimpleQueue[tuple[int, tuple[Any, ...], threading.Event]] = queue.SimpleQueue()

    def run(self, model: str, options: LoadOptions, chat_template: str) -> None:
        """Answer requests until the other end closes or is gone."""
        from .local import LocalEngine

        engine = LocalEngine(
            model,
            options,
            chat_template=chat_template,
            on_progress=lambda progress: self._send(_LOAD, progress),
            on_broken=self._give_up,
        )
        threading.Thread(target=self._work, args=(engine,), daemon=True).start()
        cancels: dict[int, threading.Event] = {}
        # A turn that was prepared comes as the same bytes, and so as the objects that are known already.
        last = b""
        args: tuple[Any, ...] = ()
        with contextlib.suppress(EOFError, OSError):
            while (request := self._connection.recv()) is not None:
                number, method, given = request
                if given != last:
                    last, args = given, pickle.loads(given)
                if method == "cancel":
                    if number in cancels:
                        cancels.pop(number).set()
                elif method == "generate":
                    cancels[number] = threading.Event()
                    self._turns.put((number, args, cancels[number]))
                else:  # prepare or render
                    conversation, tools, of_turn = args
                    with self._told(number):
                        made = getattr(engine, method)(conversation, tools=tools, options=of_turn)
                        self._send(number, made)
        if engine.compiling:
            return  # what it has of its own goes with the process
        signal.alarm(3 * ENDING_S)  # whatever holds it up
        engine.close()
        engine.join()

    def _work(self, engine: LocalEngine) -> None:
        """The thread of the turns."""
        with self._told(_LOAD):
            self._send(_LOAD, engine.wait())
        while True:
            number, (conversation, tools, options), cancel = self._turns.get()
            with self._told(number):
                for event in engine.generate(conversation, tools=tools, options=options, cancel=cancel):
                    self._send(number, event)
                self._send(number, None)

    @contextlib.contextmanager
    def _told(self, number: int) -> Iterator[None]:
        """Faults inside go to whoever waits for the request."""
        try:
            yield
        except Exception as e:
            error = (
                e if isinstance(e, GlmChatError) else ModelError(f"internal error, {type(e).__name__}: {e}")
            )
            self._send(number, _Fault(error, traceback.format_exc()))

    def _give_up(self, fault: ModelError) -> None:
        """Nothing more can come: what computes may hang for ever. Another process can begin anew."""
        self._send(_LOAD, _Fault(fault))
        os._exit(1)

    def _send(self, number: int, value: object) -> None:
        with self._lock, contextlib.suppress(OSError):  # nobody is there any more: `run` finds out
            self._connection.send((number, value))
