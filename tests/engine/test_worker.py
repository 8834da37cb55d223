"""WorkerEngine: it conforms, and the death of its process costs one message."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glmchat.chat import Chat
from glmchat.engine import process
from glmchat.engine.base import CLOSED
from glmchat.engine.memory import LoadOptions
from glmchat.engine.worker import WorkerEngine
from glmchat.errors import ModelError, UsageError
from glmchat.events import AnswerDelta, Event, LoadProgress, PromptReady
from glmchat.messages import Conversation
from tests import tiny

from .conformance import GREEDY, EngineConformance, ask, done, text


@pytest.fixture(scope="module")
def shared(tiny_glm: Path) -> Iterator[WorkerEngine]:
    with WorkerEngine(str(tiny_glm)) as engine:
        engine.wait()
        yield engine


class TestWorkerEngine(EngineConformance):
    @pytest.fixture
    def engine(self, shared: WorkerEngine) -> WorkerEngine:
        return shared

    @pytest.fixture
    def fresh(self, tiny_glm: Path) -> Iterator[WorkerEngine]:
        with WorkerEngine(str(tiny_glm)) as engine:
            yield engine
        assert gone(engine.pid)


def gone(pid: int, patience_s: float = 20) -> bool:
    """Whether the process has ended, or does so soon."""
    deadline = time.monotonic() + patience_s
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not Path(f"/proc/{pid}").exists()


@pytest.fixture
def engine(tiny_glm: Path) -> Iterator[WorkerEngine]:
    with WorkerEngine(str(tiny_glm), LoadOptions(speculate="off")) as engine:  # slow enough to be caught
        engine.wait()
        yield engine
    assert gone(engine.pid)


def kill(engine: WorkerEngine) -> None:
    """Kill its process, and wait until the engine knows."""
    os.kill(engine.pid, signal.SIGKILL)
    assert gone(engine.pid)
    until = time.monotonic() + 20
    while engine._process.fault is None and time.monotonic() < until:
        time.sleep(0.01)


def kill_in_the_answer(chat: Chat, engine: WorkerEngine, sign: int = signal.SIGKILL) -> str:
    """Ask, kill the engine when some of the answer is there; the fault, which `send` must raise."""
    turn = chat.send(tiny.COUNT.question)
    while not isinstance(next(turn), AnswerDelta):
        pass
    os.kill(engine.pid, sign)
    with pytest.raises(ModelError) as fault:
        list(turn)
    return str(fault.value)


def test_killed_in_the_middle_of_an_answer(engine: WorkerEngine) -> None:
    chat = Chat(engine, options=GREEDY)
    pid = engine.pid
    assert "was killed, as the system does when memory runs out" in kill_in_the_answer(chat, engine)
    question, partial = chat.conversation.messages
    assert question.content == tiny.COUNT.question
    assert partial.interrupted
    assert partial.content
    assert tiny.LONG.startswith(partial.content)

    events = list(chat.send(tiny.HELLO.question))
    assert isinstance(events[0], LoadProgress), "another is started"
    assert len(chat.conversation) == 4
    assert engine.pid != pid
    assert not any(isinstance(e, LoadProgress) for e in chat.send(tiny.HELLO.question))


def test_what_a_dying_process_says_is_told(engine: WorkerEngine) -> None:
    assert "was ended by SIGABRT" in kill_in_the_answer(Chat(engine, options=GREEDY), engine, signal.SIGABRT)


def test_a_signal_without_a_name(engine: WorkerEngine) -> None:
    number = signal.SIGRTMIN + 6
    assert f"was ended by signal {number}" in kill_in_the_answer(Chat(engine, options=GREEDY), engine, number)
    assert text(ask(engine, tiny.HELLO.question), AnswerDelta) == "Hello! How can I help you?"


def test_killed_between_two_turns(engine: WorkerEngine) -> None:
    name = engine.wait().name
    pid = engine.pid
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)
    assert engine.info.name == name, "what a toolbar shows needs no process"
    with pytest.raises(ModelError, match="was killed"):
        engine.render(Conversation([{"role": "user", "content": "x"}]))
    assert text(ask(engine, tiny.HELLO.question), AnswerDelta) == "Hello! How can I help you?"


def killed_unheard(engine: WorkerEngine) -> Iterator[Event]:
    """A turn whose message is on its way when the process is killed."""
    events = engine.generate(Conversation([{"role": "user", "content": tiny.HELLO.question}]), options=GREEDY)
    pid = engine.pid
    os.kill(pid, signal.SIGSTOP)  # it reads nothing more
    threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
    assert isinstance(next(events), LoadProgress)
    assert engine.pid != pid
    return events


def test_killed_as_a_message_comes(engine: WorkerEngine) -> None:
    assert text(killed_unheard(engine), AnswerDelta) == "Hello! How can I help you?"


def test_what_a_second_process_dies_of_is_told(engine: WorkerEngine) -> None:
    events = killed_unheard(engine)
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(ModelError, match=r"was killed.*the next message starts it again"):
        list(events)


def test_killed_while_it_loads(tiny_glm: Path) -> None:
    with WorkerEngine(str(tiny_glm)) as engine:
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(ModelError, match=r"was killed.*nothing runs"):
            engine.wait()
        with pytest.raises(ModelError, match="was killed"):
            ask(engine, tiny.HELLO.question)


def test_the_load_of_another_process_can_be_left(engine: WorkerEngine) -> None:
    os.kill(engine.pid, signal.SIGKILL)
    assert gone(engine.pid)
    cancel = threading.Event()
    seen = []
    for event in engine.generate(
        Conversation([{"role": "user", "content": tiny.HELLO.question}]), options=GREEDY, cancel=cancel
    ):
        seen.append(event)
        cancel.set()
    assert done(seen).finish_reason == "interrupted"
    assert text(ask(engine, tiny.HELLO.question), AnswerDelta) == "Hello! How can I help you?"


def test_a_load_that_nobody_can_be_shown(tiny_glm: Path) -> None:
    def gone_terminal(_: LoadProgress) -> None:
        raise BrokenPipeError

    with WorkerEngine(str(tiny_glm), on_progress=gone_terminal) as engine:
        assert engine.wait()


def test_no_process_to_be_had(engine: WorkerEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when there are too many, or memory is short."""
    descriptors = len(os.listdir("/proc/self/fd"))

    def none_left(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    kill(engine)
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", none_left)
        for _ in range(3):
            with pytest.raises(ModelError, match="gets no more processes or memory from the system"):
                ask(engine, tiny.HELLO.question)
        with pytest.raises(ModelError, match="end other programs first"):
            WorkerEngine("demo")
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert text(ask(engine, tiny.HELLO.question), AnswerDelta) == "Hello! How can I help you?"


def test_no_folder_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the disk is full; to end other programs would not help."""

    def none_usable() -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/var/tmp']")

    monkeypatch.setattr(tempfile, "TemporaryFile", none_usable)
    with pytest.raises(ModelError, match=r"room on the disk, or name a folder in TMPDIR\.$"):
        WorkerEngine("demo")


def test_while_it_is_loaded_again_nothing_is_rendered(engine: WorkerEngine) -> None:
    kill(engine)
    question = Conversation([{"role": "user", "content": tiny.HELLO.question}])
    events = engine.generate(question, options=GREEDY)
    assert isinstance(next(events), LoadProgress)
    with pytest.raises(ModelError, match="is being loaded again"):
        engine.render(question)
    assert done(events).message.content == "Hello! How can I help you?"
    assert engine.render(question).ids


def test_killed_while_it_is_loaded_again(engine: WorkerEngine) -> None:
    kill(engine)
    for _ in range(2):
        events = engine.generate(Conversation([{"role": "user", "content": "x"}]), options=GREEDY)
        assert isinstance(next(events), LoadProgress)
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(ModelError, match="the next message starts it again"):
            list(events)


def test_closed_while_another_process_is_started(
    engine: WorkerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(engine)
    popen, closing = subprocess.Popen, threading.Thread(target=engine.close)

    def slow(*args: Any, **more: Any) -> Any:
        closing.start()
        time.sleep(0.3)
        return popen(*args, **more)

    monkeypatch.setattr(subprocess, "Popen", slow)
    with pytest.raises(ModelError, match=r"The engine (is|was) closed"):
        ask(engine, tiny.HELLO.question)
    closing.join()
    assert gone(engine.pid)


def test_a_process_that_does_not_end_is_ended(engine: WorkerEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "ENDING_S", 0.5)
    os.kill(engine.pid, signal.SIGSTOP)
    engine.close()
    assert not Path(f"/proc/{engine.pid}").exists(), "and its memory is free"


def test_a_process_that_does_not_read_holds_nobody_up(
    engine: WorkerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "ENDING_S", 0.3)
    engine.wait()
    os.kill(engine.pid, signal.SIGSTOP)
    question = Conversation([{"role": "user", "content": "long " * 1_000_000}])  # more than a socket holds
    threads = [
        threading.Thread(target=work, daemon=True)
        for work in (lambda: engine.prepare(question), lambda: engine.prepare(question), engine.close)
    ]
    for thread in threads:
        thread.start()
        thread.join(5)
    alive = [thread.is_alive() for thread in threads]
    with contextlib.suppress(ProcessLookupError):
        os.kill(engine.pid, signal.SIGKILL)
    assert alive == [False, False, False]


def test_a_turn_that_is_left_stops_soon_and_the_next_is_not_disturbed(shared: WorkerEngine) -> None:
    conversation = Conversation([{"role": "user", "content": tiny.COUNT.question}])
    for _ in range(3):
        events = shared.generate(conversation, options=GREEDY)
        while not isinstance(next(events), AnswerDelta):
            pass
        events.close()
        answered = ask(shared, tiny.HELLO.question)
        assert isinstance(answered[0], PromptReady)
        assert text(answered, AnswerDelta) == "Hello! How can I help you?"


def test_faults_of_loading_come_whole() -> None:
    with WorkerEngine("./no/such/folder") as engine:
        for _ in range(2):
            with pytest.raises(ModelError, match="neither an existing folder") as fault:
                ask(engine, "hello")
        assert "resolve" in str(fault.value.__cause__), "where it happened, for --debug"
        with pytest.raises(ModelError, match="neither an existing folder"):
            _ = engine.info
    assert gone(engine.pid)


def test_an_option_that_cannot_be_read_is_told_at_once() -> None:
    with pytest.raises(UsageError):
        WorkerEngine("demo", LoadOptions(max_memory="much"))


def test_closing_ends_a_running_turn_and_there_is_no_other(engine: WorkerEngine) -> None:
    events = engine.generate(Conversation([{"role": "user", "content": tiny.COUNT.question}]), options=GREEDY)
    next(events)
    engine.close()
    assert gone(engine.pid)
    try:
        end = done(events).finish_reason
    except ModelError as e:  # it was gone before it could say so
        end = str(e)
    assert end in ("interrupted", "stop", CLOSED)
    with pytest.raises(ModelError, match="closed"):
        ask(engine, "hello")


def test_a_load_that_is_closed_is_not_waited_for(tiny_glm: Path) -> None:
    engine = WorkerEngine(str(tiny_glm))
    began = time.monotonic()
    engine.close()
    assert time.monotonic() - began < 0.5
    with pytest.raises(ModelError, match="closed"):
        engine.wait()
    assert gone(engine.pid)


CHILD = """
import sys, time
from glmchat.engine.worker import WorkerEngine
engine = WorkerEngine(sys.argv[1])
engine.wait()
print(engine.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_the_process_ends_with_its_parent(tiny_glm: Path, sign: int) -> None:
    parent = subprocess.Popen([sys.executable, "-c", CHILD, str(tiny_glm)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent, parent.stdout:
        pid = int(parent.stdout.readline())
        parent.send_signal(sign)
    assert gone(pid)


def test_ctrl_c_of_the_whole_group_does_not_reach_it(shared: WorkerEngine) -> None:
    os.kill(shared.pid, signal.SIGINT)
    assert text(ask(shared, tiny.HELLO.question), AnswerDelta) == "Hello! How can I help you?"


def test_files_of_the_current_folder_are_not_taken_for_modules(
    tiny_glm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("os", "json", "torch", "glmchat", "queue", "pickle"):
        (tmp_path / f"{name}.py").write_text("open('taken', 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    with WorkerEngine(str(tiny_glm)) as engine:
        assert text(ask(engine, tiny.HELLO.question), AnswerDelta) == "Hello! How can I help you?"
    assert not (tmp_path / "taken").exists()


def test_what_was_prepared_is_not_unpacked_again(shared: WorkerEngine, tmp_path: Path) -> None:
    """Which for a long conversation takes longer than to find out that all of it has been read."""
    file = str(tmp_path / "unpacked")

    class Opened:
        """A number; in the other process, that of a file which is open once more."""

        def __reduce__(self) -> tuple[object, ...]:
            return os.open, (file, os.O_CREAT)

    def unpacked() -> int:
        files = Path(f"/proc/{shared.pid}/fd")
        return sum(os.path.realpath(link) == file for link in files.iterdir())

    def asked(question: str) -> tuple[Conversation, list[dict[str, object]]]:
        tool = {"name": "f", "description": "", "parameters": {"default": Opened()}}
        return Conversation([{"role": "user", "content": question}]), [{"type": "function", "function": tool}]

    for question, times in (("Hello?", 1), ("Hello", 2)):
        for prepared in (True, True, False):
            conversation, tools = asked(question)
            if prepared:
                shared.prepare(conversation, tools=tools, options=GREEDY)
            else:
                end = done(shared.generate(conversation, tools=tools, options=GREEDY))
        assert end.usage.prompt_tokens > 20
        assert unpacked() == times
