"""Several ranks, by gloo on the CPU: they answer as one process does; the death of one costs one message."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from glmchat.chat import Chat
from glmchat.engine.base import GenerationOptions
from glmchat.engine.local import LocalEngine, open_local
from glmchat.engine.memory import LoadOptions
from glmchat.engine.worker import WorkerEngine
from glmchat.errors import ModelError, UsageError
from glmchat.events import AnswerDelta, LoadProgress
from glmchat.messages import Conversation
from tests import tiny

from .conformance import GREEDY, EngineConformance, ask, done, text
from .test_decode import AnyPace, a_conversation, forget
from .test_worker import gone

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this torch has no gloo, by which ranks on a CPU talk",
)
CONVERSATIONS = int(os.environ.get("GLMCHAT_TEST_CONVERSATIONS", "4"))
TWO = LoadOptions(parallel="tensor:2", device_map="cpu")


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with heads that two ranks can share."""
    return tiny.build(tmp_path_factory.mktemp("checkpoints") / "tiny-glm", key_value_heads=2)


def children(pid: int) -> list[int]:
    """The processes that `pid` started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def is_rank(pid: int) -> bool:
    """Libraries start programs too, while they are imported."""
    try:
        return b"glmchat.engine.ranks" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@pytest.fixture(scope="module")
def engine(even: Path) -> Iterator[WorkerEngine]:
    with WorkerEngine(str(even), TWO) as engine:
        assert engine.info.device == "2 cpu ranks"
        yield engine
    assert gone(engine.pid)


@pytest.fixture(scope="class")
def two() -> Iterator[LocalEngine]:
    """The bundled checkpoint in two processes, in FP32: in BF16 rounding decides between near ties."""
    threads = torch.get_num_threads()
    options = LoadOptions(parallel="tensor", device_map="cpu", dtype="float32", speculate="lookup")
    with open_local("demo", options) as engine:
        yield engine
    torch.set_num_threads(threads)
    assert not children(os.getpid())


@pytest.fixture(scope="class")
def one() -> Iterator[LocalEngine]:
    """The same in one."""
    with open_local("demo", LoadOptions(dtype="float32", device_map="cpu", speculate="off")) as engine:
        yield engine


class TestDeath:
    def test_in_the_middle_of_an_answer(self, engine: WorkerEngine) -> None:
        chat = Chat(engine, options=GREEDY)
        before = [engine.pid, *children(engine.pid)]
        turn = chat.send(tiny.COUNT.question)
        while not isinstance(next(turn), AnswerDelta):
            pass
        os.kill(before[1], signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(ModelError, match=r"Rank 1 of 2 of .* was killed, .*; ask again"):
            list(turn)
        assert time.monotonic() - began < 5
        partial = chat.conversation.messages[-1]
        assert partial.interrupted
        assert partial.content
        assert tiny.LONG.startswith(partial.content)
        assert all(gone(pid) for pid in before)

        events = list(chat.send(tiny.HELLO.question))
        assert isinstance(events[0], LoadProgress), "another is started"
        assert done(events).finish_reason == "stop"

    def test_between_two_turns(self, engine: WorkerEngine) -> None:
        before = [engine.pid, *children(engine.pid)]
        os.kill(before[1], signal.SIGKILL)
        assert all(gone(pid, 5) for pid in before)
        assert text(ask(engine, tiny.HELLO.question), AnswerDelta) == "Hello! How can I help you?"

    def test_ctrl_c_reaches_none_of_them(self, engine: WorkerEngine) -> None:
        for pid in (engine.pid, *children(engine.pid)):
            os.kill(pid, signal.SIGINT)
        assert text(ask(engine, tiny.HELLO.question), AnswerDelta) == "Hello! How can I help you?"

    def test_of_rank_0(self, engine: WorkerEngine) -> None:
        (rank,) = children(engine.pid)
        os.kill(engine.pid, signal.SIGKILL)
        assert gone(engine.pid)
        assert gone(rank, 5)
        assert text(ask(engine, tiny.HELLO.question), AnswerDelta) == "Hello! How can I help you?"


class TestTwoRanks(EngineConformance):
    """With ranks that were started again. The last of these tests closes the engine, and so ends them."""

    @pytest.fixture
    def fresh(self, engine: WorkerEngine) -> WorkerEngine:
        return engine

    def test_close_is_idempotent(self, fresh: WorkerEngine) -> None:
        ranks = children(fresh.pid)
        super().test_close_is_idempotent(fresh)
        assert len(ranks) == 1
        assert all(gone(pid) for pid in (fresh.pid, *ranks))


class TestOneModelInTwo:
    def test_conversations_are_the_same(self, two: LocalEngine, one: LocalEngine) -> None:
        """With reuse, branches, retries, interrupts, toggles, tools, and tokens guessed and read ahead."""
        assert sum(a_conversation(seed, two, one) for seed in range(CONVERSATIONS)) > 10 * CONVERSATIONS

    def test_branches_are_copied_and_wrong_guesses_taken_back(
        self, two: LocalEngine, one: LocalEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert two._runner is not None
        decoder = two._runner._decoder
        copies: list[int] = []

        def copy(source: Any, target: Any, length: int) -> None:
            copies.append(length)
            two._runner._loaded.copy(source, target, length)

        monkeypatch.setattr(decoder.prefixes, "_copy", copy)
        decoder.pace = AnyPace(random.Random(0))
        forget(two)
        options = GenerationOptions(greedy=True, max_tokens=40)
        long, short = ("Say this again: " + "red green blue " * 20, "Say what you can do.")
        wrong = 0
        for question in (long, short, long):
            conversation = Conversation([{"role": "user", "content": question}])
            ours, theirs = (done(engine.generate(conversation, options=options)) for engine in (two, one))
            assert ours.message == theirs.message
            wrong += ours.usage.drafted_tokens - ours.usage.accepted_tokens
        assert copies
        assert wrong

    def test_each_rank_holds_its_share(self, two: LocalEngine, one: LocalEngine) -> None:
        assert two.info.parameters == one.info.parameters
        assert two._runner is not None
        assert one._runner is not None
        loaded = two._runner._loaded
        assert loaded._ranks is not None
        whole = one._runner._loaded.own_bytes
        shares = [loaded.own_bytes, *loaded._ranks.shares.values()]
        assert len(shares) == 2
        assert all(share < 0.6 * whole for share in shares)
        assert sum(shares) >= whole

    def test_a_rank_that_dies_ends_the_others(self, two: LocalEngine) -> None:
        """The last of these tests. Here gloo raises in rank 0, which then asks who is gone."""
        (rank,) = children(os.getpid())
        os.kill(rank, signal.SIGKILL)
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(ModelError, match="Rank 1 of 2 of demo was killed"):
                ask(two, "hi")
            assert time.monotonic() - began < 5


def test_in_a_pipe_it_is_one_line_and_an_exit_code(even: Path) -> None:
    words = ["--parallel", "tensor:2", "--device-map", "cpu", "--speculate", "off", "--model", str(even)]
    program = subprocess.Popen(
        [sys.executable, "-m", "glmchat", *words, "--greedy", "--", tiny.COUNT.question],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with program:
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.read(1)
        (engine,) = children(program.pid)
        (rank,) = children(engine)
        os.kill(rank, signal.SIGKILL)
        program.stdout.read()
        (line,) = program.stderr.read().splitlines()
        assert "Rank 1 of 2" in line
    assert program.returncode == 3
    assert gone(engine)


@pytest.mark.parametrize("fault", ["killed", "fails"])
def test_a_rank_that_does_not_come_up(even: Path, tmp_path: Path, fault: str) -> None:
    began = time.monotonic()
    folder = even
    if fault == "fails":
        folder = Path(shutil.copytree(even, tmp_path / "torn"))
        weights = (folder / "model.safetensors").read_bytes()
    with WorkerEngine(str(folder), TWO) as engine:
        while not (ranks := list(filter(is_rank, children(engine.pid)))):
            time.sleep(0.01)
        if fault == "killed":
            os.kill(ranks[0], signal.SIGKILL)
        else:
            (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
        with pytest.raises(ModelError) as raised:
            engine.wait()
    assert "\n" not in str(raised.value)
    assert ("was killed" in str(raised.value)) == (fault == "killed")
    assert time.monotonic() - began < 30
    assert all(gone(pid) for pid in (engine.pid, *ranks))


def test_no_process_for_a_rank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    popen, started = subprocess.Popen, []

    def one_only(*args: Any, **more: Any) -> Any:
        if started:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        started.append(popen(*args, **more))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", one_only)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ModelError, match="Resource temporarily unavailable"):
        open_local("demo", LoadOptions(parallel="tensor:3", device_map="cpu"))
    assert started[0].poll() is not None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"parallel": "rows"}, "use off, tensor or tensor:N"),
        ({"parallel": "tensor:1"}, "use off, tensor or tensor:N"),
        ({"device_map": "balanced"}, "--device-map does not go with --parallel tensor"),
        ({"max_memory": "cpu=1GiB"}, "--max-memory does not go with"),
        ({"offload_dir": "x"}, "--offload-dir does not go with"),
        ({"speculate": "mtp"}, "--speculate mtp does not go with"),
    ],
)
def test_options_that_cannot_be(options: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        LocalEngine("demo", LoadOptions(**{"parallel": "tensor", **options}))


def test_on_the_command_line_they_are_one_line() -> None:
    words = ["--model", "demo", "--parallel", "tensor", "--max-memory", "cpu=1GiB", "--", "hi"]
    ran = subprocess.run(
        [sys.executable, "-m", "glmchat", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert "--max-memory does not go with --parallel tensor" in line


@pytest.mark.parametrize(
    ("model", "ranks", "says"),
    [
        ("demo", 3, "4 attention heads, which 3 ranks cannot share evenly; use tensor:2"),
        ("demo", 4, "2 key and value heads, which 4 ranks cannot share evenly; use tensor:2"),
        ("tiny", 2, "1 key and value heads.*; leave --parallel out"),
    ],
)
def test_sizes_that_cannot_be_split(model: str, ranks: int, says: str, tiny_glm: Path) -> None:
    options = LoadOptions(parallel=f"tensor:{ranks}", device_map="cpu")
    with pytest.raises(ModelError, match=says):
        open_local(str(tiny_glm) if model == "tiny" else model, options)
    assert not children(os.getpid())


def test_a_model_without_a_plan(tmp_path: Path, tiny_glm: Path) -> None:
    from transformers import GPT2Config

    shutil.copytree(tiny_glm, tmp_path, dirs_exist_ok=True)
    GPT2Config(n_layer=1).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no plan to split a gpt2 model"):
        open_local(str(tmp_path), TWO)
