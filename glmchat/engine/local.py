"""The engine of this process: transformers on one inference thread that loads the model and runs every turn.

One thread for all keeps torch's thread pool and the KV cache in one place, and lets a front end show
its prompt while the model still loads. `generate` hands it a job and yields what comes back.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ..errors import GlmChatError, ModelError
from ..events import Event, LoadProgress
from ..glm.checkpoints import Checkpoint, choose_template, resolve, with_weights
from ..glm.encode import Prompt, PromptEncoder
from ..messages import Conversation
from .base import CLOSED, GenerationOptions, ModelInfo, ready
from .decode import Decoder
from .faults import forget_frames, one_line
from .loading import load_model
from .memory import LoadOptions
from .outbox import Outbox
from .placing import check_room
from .progress import OnProgress
from .ranks import OnBroken
from .todo import Todo
from .turn import Ahead, Result, Turn, TurnRunner

log = logging.getLogger(__name__)

IDLE_S = 2.0
"""Who asks nothing for so long, and does not close the engine, reads or types: there is time for more."""


class LocalEngine:
    """Implements Engine with a model in this process. The constructor returns at once.

    Loading goes on in the inference thread, which calls `on_progress`; `wait`, `info` and the first
    `generate` wait for it and raise what it raised (ModelError, TemplateError).

    With LoadOptions.parallel it should be a WorkerEngine's: when another rank fails it can only end, which
    `on_broken` has to see to.
    """

    def __init__(
        self,
        model: str,
        options: LoadOptions | None = None,
        *,
        chat_template: str = "auto",
        on_progress: OnProgress | None = None,
        on_broken: OnBroken = lambda _: None,
    ) -> None:
        options = options or LoadOptions()
        options.check()  # what cannot be done is told at once
        self._todo: Todo[Turn | _Loan | None, Ahead] = Todo()
        self._loaded = threading.Event()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._fault: GlmChatError | None = None
        self._info: ModelInfo | None = None
        self._runner: TurnRunner | None = None
        self.compiling = False
        """The inference thread compiles, for some seconds, in which nothing can stop it."""
        load = _Load(model, options, chat_template, self._pass_on(on_progress), on_broken)
        self._thread = threading.Thread(target=self._run, args=(load,), name="glmchat-inference", daemon=True)
        self._thread.start()
        # A daemon thread inside torch while the interpreter goes down can crash it: stop it before.
        atexit.register(self.close)

    def wait(self) -> ModelInfo:
        """Block until the model is loaded. Raises what loading raised."""
        self._loaded.wait()
        if self._fault is not None:
            raise self._fault
        assert self._info is not None
        return self._info

    @property
    def info(self) -> ModelInfo:
        """What was loaded; waits for it."""
        return self.wait()

    def generate(
        self,
        conversation: Conversation,
        *,
        tools: Sequence[dict[str, Any]] = (),
        options: GenerationOptions | None = None,
        cancel: threading.Event | None = None,
    ) -> Generator[Event, None, None]:
        """One turn; see Engine.generate."""
        started = time.perf_counter()
        self.wait()
        abandoned = threading.Event()
        flags = (abandoned, self._closing, *([cancel] if cancel is not None else []))
        outbox = Outbox()
        turn = Turn(
            messages=conversation.messages,
            tools=tuple(tools),
            options=options or GenerationOptions(),
            cancelled=_any_set(flags),
            outbox=outbox,
            started=started,
        )
        self._put(turn)
        try:
            yield from outbox
        finally:
            abandoned.set()

    def prepare(
        self,
        conversation: Conversation,
        *,
        tools: Sequence[dict[str, Any]] = (),
        options: GenerationOptions | None = None,
    ) -> None:
        """Prefill in the inference thread until something else is to be done there; see Engine.prepare."""
        self._todo.hint(Ahead(conversation.messages, tuple(tools), options or GenerationOptions()))

    def render(
        self,
        conversation: Conversation,
        *,
        tools: Sequence[dict[str, Any]] = (),
        options: GenerationOptions | None = None,
    ) -> Prompt:
        """The exact prompt; see Engine.render."""
        self.wait()
        runner = self._runner
        if runner is None:
            raise ModelError(CLOSED)
        return runner.render(conversation.messages, tools, options or GenerationOptions())

    def lend(self, job: Callable[[Decoder, Checkpoint, Callable[[], bool]], Result]) -> Result:
        """What `job` makes of the decoder and the checkpoint, in the inference thread and between turns.

        It has to end soon once the function that it gets says that the engine closes. Raises what it raises.
        """
        self.wait()
        closing = self._closing.is_set
        loan = _Loan(
            lambda runner: runner.lend(lambda decoder, checkpoint: job(decoder, checkpoint, closing))
        )
        self._put(loan)
        result: Result = loan.future.result()
        return result

    def close(self) -> None:
        """Stop a running turn, end the thread and free the model. Idempotent."""
        with self._lock:  # so that no turn comes after the None and waits for ever
            self._closing.set()
            self._todo.put(None)
        atexit.unregister(self.close)
        # A load ends at its next sign of progress; what is imported until then cannot be stopped.
        if self._loaded.is_set() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=10)

    def join(self) -> None:
        """Wait until the thread has ended, which `close` does not do for one that still loads."""
        self._thread.join()

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _put(self, turn: Turn | _Loan) -> None:
        with self._lock:
            if self._closing.is_set():
                raise ModelError(CLOSED)
            self._todo.put(turn)

    def _pass_on(self, on_progress: OnProgress | None) -> OnProgress:
        """`on_progress`, which in passing ends the load of an engine that was closed meanwhile."""

        def report(progress: LoadProgress) -> None:
            if self._closing.is_set():
                raise ModelError("The engine was closed before its model was loaded; open it again.")
            if on_progress is not None:
                on_progress(progress)

        return report

    def _run(self, load: _Load) -> None:
        """The inference thread: load, then one turn after the other until None comes."""
        try:
            with one_line(load.model, "loading"):
                runner, self._info = load()
                self._runner = runner
        except GlmChatError as e:
            forget_frames(e)  # which hold what was loaded
            self._fault = e
            return
        finally:
            self._loaded.set()
        while (turn := self._next(runner)) is not None:
            if isinstance(turn, Ahead):
                self._read_ahead(runner, turn)
                continue
            if isinstance(turn, _Loan):
                turn(load.model, runner)
                continue
            try:
                with one_line(load.model, "answering"):
                    runner.run(turn)
                turn.outbox.close()
            except GlmChatError as e:
                log.debug("the turn failed", exc_info=True)
                turn.outbox.fail(e)
        self._runner = None
        runner.close()

    def _next(self, runner: TurnRunner) -> Turn | Ahead | _Loan | None:
        """What to do next. While nobody asks for anything, more and more of the weights gets onto huge pages,
        and of the decode step compiled."""
        idle_s: float | None = IDLE_S
        while True:
            try:
                return self._todo.take(idle_s)
            except TimeoutError:
                idle_s = 0 if self._improve(runner) else None

    def _improve(self, runner: TurnRunner) -> bool:
        """Do the next part of it. False: there is none left, or it failed, which must cost no turn."""
        try:
            if runner.page_more():
                return True
            self.compiling = True
            return runner.compile_more()
        except Exception:
            log.debug("what is done while nobody asks failed", exc_info=True)
            return False
        finally:
            self.compiling = False

    def _read_ahead(self, runner: TurnRunner, ahead: Ahead) -> None:
        try:
            runner.read_ahead(ahead, self._todo)
        except Exception:  # nobody waits for it: the turn itself will tell
            log.debug("prefilling ahead failed", exc_info=True)


class _Loan:
    """A job other than a turn, and what comes of it."""

    def __init__(self, job: Callable[[TurnRunner], Any]) -> None:
        self.future: Future[Any] = Future()
        self._job = job

    def __call__(self, model: str, runner: TurnRunner) -> None:
        try:
            with one_line(model, "running"):
                self.future.set_result(self._job(runner))
        except GlmChatError as e:
            self.future.set_exception(e)


def _any_set(flags: tuple[threading.Event, ...]) -> Callable[[], bool]:
    return lambda: any(flag.is_set() for flag in flags)


def open_local(
    model: str,
    options: LoadOptions | None = None,
    *,
    chat_template: str = "auto",
    on_progress: OnProgress | None = None,
) -> LocalEngine:
    """Load `model` and return its engine, ready to answer.

    `on_progress` is called in the inference thread. Raises: UsageError, ModelError or TemplateError.
    """
    return ready(LocalEngine(model, options, chat_template=chat_template, on_progress=on_progress))


@dataclass(frozen=True, slots=True)
class _Load:
    """What the inference thread does first: small files and template before the heavy imports."""

    model: str
    options: LoadOptions
    chat_template: str
    on_progress: OnProgress
    on_broken: OnBroken

    def __call__(self) -> tuple[TurnRunner, ModelInfo]:
        started = time.perf_counter()
        options = self.options
        checkpoint = resolve(
            self.model,
            revision=options.revision,
            token=options.token,
            offline=options.offline,
            with_code=options.trust_remote_code,
        )
        template = choose_template(checkpoint, self.chat_template)
        encoder = PromptEncoder(checkpoint.tokenizer, template)
        check_room(checkpoint, options)
        checkpoint = with_weights(
            checkpoint, lambda done, total: self.on_progress(LoadProgress("downloading", done, total))
        )
        if ignored := checkpoint.ignored_settings:
            log.info("%s: not followed from generation_config.json: %s", self.model, ", ".join(ignored))
        loaded = load_model(checkpoint, options, self.on_progress, self.on_broken)
        info = ModelInfo(
            name=self.model,
            device=loaded.devices,
            dtype=loaded.dtype,
            parameters=loaded.parameters,
            context_length=checkpoint.context_length,
            load_s=time.perf_counter() - started,
            thinks=template.knows_thinking,
            ends=bool(checkpoint.eos_token_ids),
            not_followed=tuple(checkpoint.ignored_settings),
        )
        return TurnRunner(checkpoint, encoder, loaded), info
