"""The compiled decode step: the same answers, and where it cannot be, is wrong or slow, the model goes on."""

from __future__ import annotations

import copy
import gc
import os
import shutil
import stat
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from glmchat.engine import compiled, kv, local
from glmchat.engine.base import GenerationOptions
from glmchat.engine.compiled import LENGTHS, MESSAGE_STEP, MESSAGES, CompiledStep, why_not
from glmchat.engine.graphs import Recorder
from glmchat.engine.loaded import LoadedModel
from glmchat.engine.local import LocalEngine, open_local
from glmchat.engine.memory import LoadOptions
from glmchat.engine.step import FEW, Out, Pieces, Step, run
from glmchat.engine.step import _run_experts as run_experts
from glmchat.errors import ModelError
from glmchat.messages import Conversation
from tests import tiny
from tests.gpu import needs_gpu

from .conformance import GREEDY, ask, done
from .test_decode import QUESTIONS, a_conversation, forget

CXX = os.environ.get("CXX", "g++")
needs_compiler = pytest.mark.skipif(shutil.which(CXX) is None, reason=f"{CXX} is not installed")


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where torch keeps what these tests compile."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
        yield folder


def demo(compile: str, speculate: str, device: str = "cpu") -> LocalEngine:
    """The bundled checkpoint in FP32: in BF16 rounding decides between near ties."""
    return open_local(
        "demo", LoadOptions(dtype="float32", device_map=device, speculate=speculate, compile=compile)
    )


@pytest.fixture(scope="module")
def guessing(cache_folder: Path) -> Iterator[LocalEngine]:
    """Compiled, for steps of any number of rows."""
    with demo("on", "mtp") as engine:
        yield engine


@pytest.fixture
def stepping(guessing: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> LocalEngine:
    """The same, but nothing is guessed."""
    assert guessing._runner is not None
    monkeypatch.setattr(guessing._runner._decoder, "pace", None)
    forget(guessing)
    return guessing


@pytest.fixture(scope="module")
def plain() -> Iterator[LocalEngine]:
    with demo("off", "off") as engine:
        yield engine


def loaded(engine: LocalEngine) -> LoadedModel:
    assert engine._runner is not None
    return engine._runner._loaded


def step_of(engine: LocalEngine) -> CompiledStep:
    step = loaded(engine).compiled
    assert step is not None
    return step


def answers(engine: LocalEngine, system: str = "Be brief.") -> list[str]:
    """To several turns of one conversation, each after a cache that is cut back to what both share."""
    conversation = Conversation([{"role": "system", "content": system}])
    for question in QUESTIONS[:5]:
        conversation.append({"role": "user", "content": question})
        conversation.append(done(engine.generate(conversation, options=GREEDY)).message)
    return [m.reasoning_content + m.content for m in conversation if m.role == "assistant"]


def count_steps(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each compiled step from now on."""
    rows: list[int] = []
    run = step_of(engine)._run
    assert run is not None

    def counted(ids: Any, *more: Any) -> Any:
        rows.append(ids.shape[1])
        return run(ids, *more)

    monkeypatch.setattr(step_of(engine), "_run", counted)
    return rows


@needs_compiler
class TestSameAnswers:
    def test_over_the_turns_of_a_conversation(
        self, stepping: LocalEngine, plain: LocalEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = count_steps(stepping, monkeypatch)
        assert answers(stepping) == answers(plain)
        assert rows.count(1) > 100

    def test_with_branches_interrupts_and_guesses(
        self, guessing: LocalEngine, plain: LocalEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = count_steps(guessing, monkeypatch)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        assert sum(a_conversation(seed, guessing, plain) for seed in range(100, 108)) > 8
        assert {1, 2, 3, 4, 5, 6} <= set(rows)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "nothing was compiled again"

    def test_where_the_cache_grows(
        self, guessing: LocalEngine, plain: LocalEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rooms: list[int] = []
        run = step_of(guessing)._run
        assert run is not None

        def seen(ids: Any, position: Any, buffers: Any) -> Any:
            rooms.append(buffers[0][0].shape[2])
            return run(ids, position, buffers)

        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        monkeypatch.setattr(step_of(guessing), "_run", seen)
        for system in ("Be brief.", "You are a pirate. " * 20, "You are a pirate. " * 50):
            for engine in (guessing, plain):
                forget(engine)
            assert answers(guessing, system) == answers(plain, system)
        assert len(set(rooms)) > 2
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "nothing was compiled again"

    def test_messages_behind_a_history(
        self, guessing: LocalEngine, plain: LocalEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Made up to a multiple of eight tokens, of which those that are none leave nothing."""
        rows = count_steps(guessing, monkeypatch)
        read: list[int] = []
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        monkeypatch.setattr(step_of(guessing), "_most_rows", most := 2 * MESSAGES[-1])
        answers = {}
        for engine in (guessing, plain):
            forget(engine)
            conversation = Conversation()
            for length in (1, 2, 20, 3, 4):
                question = "Who are you? " * length
                conversation.append({"role": "user", "content": question})
                answer = done(engine.generate(conversation, options=GREEDY))
                conversation.append(answer.message)
                read.append(answer.usage.prompt_tokens - answer.usage.cached_tokens)
            answers[engine] = [m.reasoning_content + m.content for m in conversation if m.role == "assistant"]
        assert answers[guessing] == answers[plain]
        messages = [n for n in rows if n > FEW]
        assert len(set(messages)) > 2, read
        assert all(n % MESSAGE_STEP == 0 for n in messages)
        assert max(read) > most >= max(messages)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "nothing was compiled again"

    def test_by_chance_with_the_same_seed(self, stepping: LocalEngine, plain: LocalEngine) -> None:
        options = GenerationOptions(temperature=1.5, seed=7, max_tokens=40)
        ours, theirs = (done(ask(e, "Who are you?", options=options)) for e in (stepping, plain))
        assert ours.message == theirs.message

    def test_a_step_that_fails_is_the_last_and_costs_nothing(
        self, stepping: LocalEngine, plain: LocalEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        step = step_of(stepping)
        run, calls = step._run, []
        assert run is not None

        def fails(*args: Any) -> Any:
            calls.append(run(*args))  # it has written to the cache by then
            if len(calls) == 10:
                raise RuntimeError("out of memory")
            return calls[-1]

        monkeypatch.setattr(step, "_run", fails)
        monkeypatch.setattr(step, "_longest", step._longest)
        assert answers(stepping) == answers(plain)
        assert len(calls) == 10


def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The very same step runs without being compiled, which takes no time."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def compile_all(step: CompiledStep) -> None:
    while step.compile_more():
        pass


class TestFallingBack:
    """As `auto` does on a GPU."""

    @pytest.fixture
    def step(self, plain: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> CompiledStep:
        """Not compiled yet, and used only if it is faster."""
        monkeypatch.setattr(compiled, "use_cache_folder", lambda: None)
        uncompiled(monkeypatch)
        step = CompiledStep(loaded(plain), loaded(plain)._model, asked=False)
        monkeypatch.setattr(loaded(plain), "compiled", step)
        return step

    def time_it(self, monkeypatch: pytest.MonkeyPatch, times: Callable[[int, bool], float]) -> None:
        """Let a step take `times` seconds, of the tokens in the cache and whether it is the compiled one."""

        def seconds(step: CompiledStep, forward: Any, cache: Any, rows: int) -> float:
            return times(cache.get_seq_length(), forward == step._forward)

        monkeypatch.setattr(CompiledStep, "_seconds", seconds)

    def test_it_is_used_where_it_is_faster(
        self, step: CompiledStep, plain: LocalEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.time_it(monkeypatch, lambda length, ours: 1.0 if ours else 2.0)
        expected = answers(plain)
        forget(plain)
        compile_all(step)
        rows = count_steps(plain, monkeypatch)
        assert step._longest == 4 * LENGTHS[-1]
        assert answers(plain) == expected
        assert rows

    def test_not_where_it_is_slower(self, step: CompiledStep, monkeypatch: pytest.MonkeyPatch) -> None:
        self.time_it(monkeypatch, lambda length, ours: 2.0 if ours else 1.0)
        compile_all(step)
        assert (step._longest, step._run) == (0, None)

    def test_only_up_to_where_it_gets_slower(
        self, step: CompiledStep, plain: LocalEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.time_it(monkeypatch, lambda length, ours: length * ours or 2000.0)
        compile_all(step)
        assert step._longest == 4 * LENGTHS[0]
        cache = loaded(plain).new_cache()
        ids = loaded(plain).ids([1])
        assert not step.takes(ids, cache), "it is for what follows a prompt"
        cache.update(*torch.zeros(2, 1, 2, step._longest - 1, 32), 0)
        cache.layers = cache.layers[:1]
        assert step.takes(ids, cache)
        assert not step.takes(loaded(plain).ids([1, 1]), cache)

    def test_it_is_really_timed(self, step: CompiledStep) -> None:
        compile_all(step)
        assert step._longest in (0, *(4 * length for length in LENGTHS))

    def test_not_where_it_gives_other_numbers(
        self, step: CompiledStep, plain: LocalEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        right = Step.begin

        def one_too_far(self: Step, ids: Any, position: Any, room: int) -> Any:
            return right(self, ids, position + 1, room)

        monkeypatch.setattr(Step, "begin", one_too_far)
        compile_all(step)
        assert (step._longest, step._run) == (0, None)
        assert answers(plain)

    def test_not_where_torch_fails(
        self, step: CompiledStep, plain: LocalEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: Any, **__: Any) -> Any:
            raise RuntimeError("\nno kernel for this\nand more")

        monkeypatch.setattr(torch, "compile", fails)
        compile_all(step)
        assert (step._longest, step._run) == (0, None)
        assert answers(plain)
        with pytest.raises(ModelError, match=r"^--compile on: .*: no kernel for this; use auto or off\.$"):
            demo("on", "off")

    def test_it_is_compiled_while_nobody_asks(
        self, plain: LocalEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        uncompiled(monkeypatch)
        monkeypatch.setattr(compiled, "use_cache_folder", lambda: None)
        monkeypatch.setattr(CompiledStep, "_faster_up_to", lambda self, cache: sys.maxsize)
        monkeypatch.setattr(local, "IDLE_S", 600)
        monkeypatch.setattr(
            "glmchat.engine.loading.plan_compiling",
            lambda loaded, model, options: CompiledStep(loaded, model, asked=False),
        )
        expected = answers(plain)
        with demo("auto", "off") as engine:
            first = done(ask(engine, QUESTIONS[0]))
            assert step_of(engine)._run is None, "there was no time yet"
            monkeypatch.setattr(local, "IDLE_S", 0.1)
            ask(engine, QUESTIONS[0])
            deadline = time.monotonic() + 20
            while not step_of(engine)._longest and time.monotonic() < deadline:
                time.sleep(0.02)
            with monkeypatch.context() as patch:
                rows = count_steps(engine, patch)
                assert answers(engine) == expected
            assert rows
            assert first.message.reasoning_content + first.message.content == expected[0]
            model = weakref.ref(loaded(engine)._model)
        gc.collect()  # transformers' own modules refer to each other
        assert model() is None, "closing frees the weights"


class TestMessages:
    """As on a GPU, where those of a prompt's tokens are tried too."""

    @pytest.fixture
    def step(self, plain: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> CompiledStep:
        monkeypatch.setattr(compiled, "use_cache_folder", lambda: None)
        uncompiled(monkeypatch)
        step = CompiledStep(loaded(plain), loaded(plain)._model, asked=True, messages=True)
        monkeypatch.setattr(loaded(plain), "compiled", step)
        return step

    def fast(self, up_to: int, monkeypatch: pytest.MonkeyPatch) -> None:
        def seconds(step: CompiledStep, forward: Any, cache: Any, rows: int) -> float:
            return 2.0 if forward == step._forward and rows > up_to else 1.0 + (forward != step._forward) / 2

        monkeypatch.setattr(CompiledStep, "_seconds", seconds)

    @pytest.mark.parametrize("most", [FEW, *MESSAGES])
    def test_they_are_taken_up_to_where_that_is_faster(
        self, most: int, step: CompiledStep, plain: LocalEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.fast(most, monkeypatch)
        compile_all(step)
        cache = loaded(plain).new_cache()
        cache.update(*torch.zeros(2, 1, 2, 4 * LENGTHS[1] - most, 32), 0)
        cache.layers = cache.layers[:1]
        ids = loaded(plain).ids
        assert step.takes(ids([1] * most), cache)
        assert not step.takes(ids([1] * (most + 1)), cache)
        cache.update(*torch.zeros(2, 1, 2, 1, 32), 0)
        assert step.takes(ids([1] * most), cache) == (most == FEW), "that far it was not measured"

    def test_it_is_really_timed(self, step: CompiledStep) -> None:
        compile_all(step)
        assert step._most_rows in (FEW, *MESSAGES)

    @pytest.mark.parametrize("when", ["compiled", "run"])
    def test_where_they_fail_steps_go_on(
        self, when: str, step: CompiledStep, plain: LocalEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        forget(plain)
        monkeypatch.setattr(loaded(plain), "compiled", None)
        expected = answers(plain)
        monkeypatch.setattr(loaded(plain), "compiled", step)
        forget(plain)
        begin, failed = Step.begin, []

        def fails(self: Step, ids: Any, *more: Any) -> Any:
            if ids.shape[1] > FEW:
                failed.append(ids.shape[1])
                raise RuntimeError("out of memory")
            return begin(self, ids, *more)

        self.fast(MESSAGES[-1], monkeypatch)
        if when == "compiled":
            monkeypatch.setattr(Step, "begin", fails)
        compile_all(step)
        assert step._most_rows == (FEW if when == "compiled" else MESSAGES[-1])
        monkeypatch.setattr(Step, "begin", fails)
        rows = count_steps(plain, monkeypatch)
        assert answers(plain) == expected
        assert len(failed) == 1
        assert rows.count(1) > 100
        assert (step._most_rows, step._longest) == (FEW, sys.maxsize)


@pytest.mark.skipif(not hasattr(torch.nn.functional, "grouped_mm"), reason="this torch has no grouped_mm")
def test_experts_of_many_rows_are_grouped(plain: LocalEngine) -> None:
    """To the same sums as if each row were alone, some experts having many rows and some none."""
    torch.manual_seed(0)
    model = copy.deepcopy(loaded(plain)._model).to(torch.bfloat16)
    experts = next(layer.mlp.experts for layer in model.model.layers if hasattr(layer.mlp, "experts"))
    x = torch.randn(FEW + 5, model.config.hidden_size).bfloat16()
    index = torch.randint(experts.num_experts - 1, (len(x), model.config.num_experts_per_tok))
    index[3:9] = 0
    weights = torch.rand(index.shape)
    with torch.inference_mode():
        together = run_experts(experts, x, index, weights)
        each = torch.cat(
            [run_experts(experts, x[i : i + 1], index[i : i + 1], weights[i : i + 1]) for i in range(len(x))]
        )
    assert (together.float() - each.float()).norm() < 1e-2 * each.float().norm()


class OnCpu(Recorder):
    """Records and replays by running the step again, on what a recording was made with."""

    recorded = 0

    def _record(self, ids: Any, position: Any, buffers: Any) -> Any:
        self.recorded += 1
        out = tuple(t.clone() for t in run(self._pieces(ids, position, buffers)))

        def replay(new_ids: Any, new_position: Any) -> Any:
            ids.copy_(new_ids)
            position.copy_(new_position)
            for fixed, new in zip(out, run(self._pieces(ids, position, buffers)), strict=True):
                fixed.copy_(new)
            return out

        return SimpleNamespace(replay=replay)


def in_one_piece(step: Callable[..., Any]) -> Callable[..., Pieces]:
    def pieces(*given: Any) -> Pieces:
        yield from ()
        out: Out = step(*given)
        return out

    return pieces


class TestRecording:
    def test_it_follows_the_buffers(self, plain: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of another conversation, of a branch, and where they grow."""
        monkeypatch.setattr(kv, "FIRST_ROOM", 1)
        uncompiled(monkeypatch)
        expected, branch = answers(plain), done(ask(plain, "My name is Ada.")).message
        forget(plain)
        step = CompiledStep(loaded(plain), loaded(plain)._model, asked=True)
        monkeypatch.setattr(compiled, "use_cache_folder", lambda: None)
        compile_all(step)
        assert step._run is not None
        recorder = OnCpu(in_one_piece(step._run))
        step._run = recorder
        monkeypatch.setattr(loaded(plain), "compiled", step)
        steps = count_steps(plain, monkeypatch)
        for _ in range(2):
            assert answers(plain) == expected
            assert done(ask(plain, "My name is Ada.")).message == branch
        assert 4 < recorder.recorded < len(steps) / 5

    def test_what_it_gave_stays(self) -> None:
        recorder = OnCpu(in_one_piece(lambda ids, position, _: (ids + 1.0, position + 1.0)))
        buffers = [(torch.zeros(1, 1, 4, 1), torch.zeros(1, 1, 4, 1))]
        outs = [recorder(torch.tensor([[n]]), torch.tensor([n]), buffers) for n in range(4)]
        assert [int(logits) for logits, _ in outs] == [int(states) for _, states in outs] == [1, 2, 3, 4]
        assert recorder.recorded == 1

    def test_what_comes_but_once_is_not_recorded(self) -> None:
        """As the rest of a prompt does, for whose answer somebody waits."""
        recorder = OnCpu(in_one_piece(lambda ids, position, _: (ids + 1.0, position + 1.0)))
        one, other = ([(torch.zeros(1, 1, room, 1), torch.zeros(1, 1, room, 1))] for room in (4, 8))
        recorded = []
        for rows, buffers in (
            *((5, one), (1, one), (1, one), (1, one)),
            *((5, other), (1, other), (1, other), (5, other), (5, other)),
        ):
            recorder(torch.ones(1, rows), torch.tensor([rows]), buffers)
            recorded.append(recorder.recorded)
        assert recorded == [0, 0, 1, 1, 1, 1, 2, 3, 3]


def test_what_runs_on_a_gpu_is_traced_whole(plain: LocalEngine) -> None:
    """Without running it: tensors on `meta` take the way of those on a GPU."""
    model = copy.deepcopy(loaded(plain)._model).to(device="meta", dtype=torch.bfloat16)
    step = Step(model)
    step.run_layer = torch.compile(step.run_layer, fullgraph=True, backend="aot_eager")
    shape = (1, model.config.num_key_value_heads, 512, model.config.head_dim)
    with torch.inference_mode():
        keys, values = (torch.empty(shape, dtype=torch.bfloat16, device="meta") for _ in range(2))
        buffers = [(keys, values) for _ in step.layers]
        for rows in (1, 3, 24):
            ids = torch.zeros(1, rows, dtype=torch.long, device="meta")
            logits, states = run(step.pieces(ids, ids[0, :1], buffers))
            assert logits.shape == (rows, model.config.vocab_size)
            assert states.shape == (1, rows, model.config.hidden_size)


class TestWhetherItIsTried:
    def test_on_a_cpu_auto_is_off_and_imports_nothing(self) -> None:
        code = (
            "import sys; from glmchat.engine.local import open_local\n"
            "with open_local('demo') as engine: assert engine._runner._loaded.compiled is None\n"
            "assert 'torch._inductor.compile_fx' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=100)

    def test_without_a_compiler_on_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CXX", "no-such-compiler")
        with pytest.raises(ModelError, match=r"there is no C\+\+ compiler \(no-such-compiler\) here; use"):
            demo("on", "off")

    @pytest.mark.parametrize(
        ("changes", "more", "why"),
        [
            ({"model_type": "llama"}, {}, "only glm4_moe of transformers can be, and this is llama"),
            ({"quantization_config": {}}, {}, "quantised"),
            ({}, {"offloaded": True}, "not all on one device"),
            ({}, {"attn": "eager"}, "--attn eager asks for another"),
            ({}, {}, None),
        ],
    )
    def test_what_keeps_it_from_that(
        self, changes: dict[str, Any], more: dict[str, Any], why: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

        monkeypatch.setenv("CXX", sys.executable)
        config = Glm4MoeConfig(
            vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1
        )
        with torch.device("meta"):
            model = Glm4MoeForCausalLM(config)
        model.to_empty(device="cpu")
        for name, value in changes.items():
            monkeypatch.setattr(model, "config", SimpleNamespace(**{"model_type": "glm4_moe", name: value}))
        found = why_not(model, **{"offloaded": False, "attn": None, **more})
        assert (found is None) == (why is None)
        assert why is None or why in str(found)

    def test_what_is_compiled_is_kept_where_others_cannot_write(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
        compiled.use_cache_folder()
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere"
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_, **__: str(tmp_path / "glmchat"))
        compiled.use_cache_folder()
        folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        assert folder.parent == tmp_path / "glmchat"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@needs_gpu
class TestOnAGpu:
    def test_the_same_answers_from_recordings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.backends.cuda.matmul.allow_tf32 = False
        with demo("off", "off", "cuda:0") as plain:
            expected = answers(plain)
            for speculate in ("off", "mtp"):
                with demo("on", speculate, "cuda:0") as engine:
                    run = step_of(engine)._run
                    assert isinstance(run, Recorder)
                    rows = count_steps(engine, monkeypatch)
                    assert answers(engine) == expected
                    assert rows
                    assert run._recordings
                    for seed in range(10):
                        a_conversation(seed, engine, plain)

    def test_auto_ends_in_a_decision(self, tiny_glm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(local, "IDLE_S", 0.1)
        with open_local(str(tiny_glm), LoadOptions(device_map="cuda:0")) as engine:
            before = done(ask(engine, tiny.HELLO.question)).message
            deadline = time.monotonic() + 250
            while step_of(engine)._parts is not None and time.monotonic() < deadline:
                time.sleep(0.1)
            assert step_of(engine)._parts is None
            assert done(ask(engine, tiny.HELLO.question)).message == before
