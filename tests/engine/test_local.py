"""LocalEngine: it conforms, decodes as transformers does, and survives faults."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from glmchat.chat import Chat
from glmchat.engine import decode, local
from glmchat.engine.base import GenerationOptions, check_fits
from glmchat.engine.loaded import LoadedModel
from glmchat.engine.local import LocalEngine, open_local
from glmchat.engine.memory import LoadOptions
from glmchat.errors import ContextFullError, ModelError, TemplateError
from glmchat.events import LoadProgress, PrefillProgress, PromptReady, TurnsDropped
from glmchat.glm.encode import LONG, Prompt, PromptEncoder
from glmchat.messages import Conversation, Message
from tests import tiny

from .conformance import GREEDY, EngineConformance, ask, done


@pytest.fixture(scope="module")
def shared(tiny_glm: Path) -> Iterator[LocalEngine]:
    with open_local(str(tiny_glm)) as engine:
        yield engine


class TestLocalEngine(EngineConformance):
    @pytest.fixture
    def engine(self, shared: LocalEngine) -> LocalEngine:
        return shared

    @pytest.fixture
    def fresh(self, tiny_glm: Path) -> Iterator[LocalEngine]:
        with open_local(str(tiny_glm)) as engine:
            yield engine


def generate(folder: Path, prompt: str, limit: int) -> str:
    """What transformers' own generate writes after `prompt`, greedily."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False).ids])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=limit)
    return str(tokenizer.decode(output[0, ids.shape[1] :].tolist()))


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_greedy_answer_equals_that_of_generate(
    tiny_glm: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a prompt that no weights know by heart, prefilled in chunks of any size."""
    monkeypatch.setattr(decode, "CHUNK_CPU", chunk)
    question = "tell me something that is not among the sentences you know"
    with open_local(str(tiny_glm)) as engine:
        events = ask(engine, question, options=GenerationOptions(greedy=True, max_tokens=60))
    prefilled = [e.done for e in events if isinstance(e, PrefillProgress)]
    total = done(events).usage.prompt_tokens
    assert prefilled == [*range(chunk, total, chunk), total]
    message = done(events).message
    expected = generate(tiny_glm, f"[gMASK]<sop><|user|>\n{question}<|assistant|>", 60)
    ours = (message.reasoning_content + message.content).split()
    assert ours
    assert "".join(ours) in "".join(expected.replace("<think>", "").replace("</think>", "").split())


def test_cache_is_reused_for_what_both_prompts_share(shared: LocalEngine) -> None:
    conversation = Conversation([{"role": "user", "content": tiny.HELLO.question}])
    ask(shared, "something else")
    first = done(shared.generate(conversation, options=GREEDY))
    conversation.append(first.message)
    conversation.append({"role": "user", "content": tiny.COUNT.question})
    second = done(shared.generate(conversation, options=GREEDY))
    assert first.usage.prompt_tokens <= second.usage.cached_tokens < second.usage.prompt_tokens
    with open_local(shared.info.name) as fresh:
        assert done(fresh.generate(conversation, options=GREEDY)).message == second.message


def test_the_same_prompt_is_rendered_once(shared: LocalEngine) -> None:
    def tool(default: object) -> dict[str, object]:
        parameters = {"type": "object", "properties": {"a": {"default": default}}}
        return {"type": "function", "function": {"name": "f", "description": "", "parameters": parameters}}

    first, again = (shared.render(Conversation([Message("user", "hi")]), tools=[tool(1)]) for _ in range(2))
    assert again is first
    assert shared.render(Conversation([Message("user", "ho")]), tools=[tool(1)]) != first
    true = shared.render(
        Conversation([Message("user", "hi")]), tools=[tool(True)]
    )  # which equals 1 in Python
    assert "true" in true.text
    quick = shared.render(
        Conversation([Message("user", "hi")]),
        tools=[tool(1)],
        options=GenerationOptions(enable_thinking=False),
    )
    assert quick != first


class TestFaults:
    @pytest.fixture
    def failing(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Make the n-th forward from now raise."""
        forward = LoadedModel.forward

        def arm(error: Exception, after: int) -> None:
            calls = iter(range(10**6))

            def fail(self: LoadedModel, ids: Any, cache: Any, rows: int = 1) -> Any:
                if next(calls) == after:
                    forward(self, ids, cache, rows)  # the cache has grown when the fault comes
                    raise error
                return forward(self, ids, cache, rows)

            monkeypatch.setattr(LoadedModel, "forward", fail)

        return arm

    @pytest.mark.parametrize("after", [0, 5])
    def test_fault_of_the_model_is_told_and_the_engine_stays_usable(
        self, tiny_glm: Path, failing: Any, after: int
    ) -> None:
        failing(RuntimeError("broken\nkernel"), after)
        with open_local(str(tiny_glm)) as engine:
            with pytest.raises(ModelError, match="failed while answering: broken kernel"):
                ask(engine, tiny.HELLO.question)
            last = done(ask(engine, tiny.HELLO.question))
        assert last.message.content == "Hello! How can I help you?"
        assert last.usage.cached_tokens == 0

    def test_out_of_memory_says_what_to_do(self, shared: LocalEngine, failing: Any) -> None:
        import torch

        failing(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 3)
        with pytest.raises(ModelError, match="This conversation does not fit in memory"):
            ask(shared, tiny.HELLO.question)

    def test_template_that_refuses(self, tiny_glm: Path, tmp_path: Path) -> None:
        template = tmp_path / "strict.jinja"
        template.write_text("{{ raise_exception('no') if messages|length < 3 }}hello<|assistant|>")
        with open_local(str(tiny_glm), chat_template=str(template)) as engine:
            assert not engine.info.thinks
            with pytest.raises(TemplateError):
                ask(engine, "hello")

    def test_template_that_makes_nothing(self, tiny_glm: Path, tmp_path: Path) -> None:
        (template := tmp_path / "empty.jinja").write_text("{# nothing #}")
        refused = pytest.raises(TemplateError, match="made nothing of the conversation")
        with open_local(str(tiny_glm), chat_template=str(template)) as engine, refused:
            ask(engine, "hello")

    def test_token_that_the_weights_do_not_know(self, tiny_glm: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(tiny_glm, tmp_path / "more"))
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        added = tokenizer["added_tokens"]
        added.append({**added[0], "id": added[-1]["id"] + 1, "content": "<|new|>"})
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        (folder / "chat_template.jinja").write_text("<|new|>{{ messages[0].content }}")
        with open_local(str(folder)) as engine, pytest.raises(ModelError, match="knows more tokens than"):
            ask(engine, "hello")

    def test_what_cannot_fit_for_its_length_is_not_encoded(
        self, shared: LocalEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        check_fits(1280, "m", 10)
        check_fits(5000, "m", 0)
        with pytest.raises(ContextFullError, match="1,281 bytes long and the context of m holds 10 tokens"):
            check_fits(1281, "m", 10)
        monkeypatch.setattr(PromptEncoder, "encode", None)
        with pytest.raises(ContextFullError, match=r"200,000 bytes long and the context of .* 1,024 tokens"):
            ask(shared, "x" * 200_000)

    @pytest.mark.parametrize("options", [GREEDY, GenerationOptions(temperature=1.0)])
    def test_weights_that_are_no_numbers(
        self, tiny_glm: Path, tmp_path: Path, options: GenerationOptions
    ) -> None:
        folder = Path(shutil.copytree(tiny_glm, tmp_path / "nan"))
        weights = load_file(folder / "model.safetensors")
        weights["model.norm.weight"] *= float("nan")
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with open_local(str(folder)) as engine, pytest.raises(ModelError, match=r"no numbers \(NaN\)"):
            ask(engine, "hello", options=options)

    def test_loading_fault_comes_from_whatever_is_called_first(self) -> None:
        engine = LocalEngine("./no/such/folder")
        with pytest.raises(ModelError, match="neither an existing folder"):
            ask(engine, "hello")
        with pytest.raises(ModelError, match="neither an existing folder"):
            _ = engine.info
        engine.close()

    def test_closed_engine_refuses(self, tiny_glm: Path) -> None:
        engine = open_local(str(tiny_glm))
        engine.close()
        with pytest.raises(ModelError, match="closed"):
            ask(engine, "hello")


def test_close_stops_a_running_turn(tiny_glm: Path) -> None:
    before = set(threading.enumerate())
    engine = open_local(str(tiny_glm))
    conversation = Conversation([{"role": "user", "content": tiny.COUNT.question}])
    events = engine.generate(conversation, options=GREEDY)
    next(events)
    engine.close()
    assert done(events).finish_reason in ("interrupted", "stop")
    assert set(threading.enumerate()) <= before


def test_a_small_model_runs_on_one_thread(tiny_glm: Path) -> None:
    before = torch.get_num_threads()
    with open_local(str(tiny_glm)) as engine:
        assert engine.lend(lambda decoder, *_: decoder.loaded.threads) == 1
    assert torch.get_num_threads() == before  # of other threads


def test_cancel_between_prefill_chunks(tiny_glm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "CHUNK_CPU", 1)
    cancel = threading.Event()
    seen = []
    with open_local(str(tiny_glm)) as engine:
        conversation = Conversation([{"role": "user", "content": "word " * 200}])
        for event in engine.generate(conversation, options=GREEDY, cancel=cancel):
            seen.append(event)
            if isinstance(event, PrefillProgress):
                cancel.set()
        assert done(seen).finish_reason == "interrupted"
        assert done(seen).usage.completion_tokens == 0
        assert done(seen).timing.ttft_s is None
        assert sum(isinstance(e, PrefillProgress) for e in seen) < 200
        again = done(ask(engine, "word " * 200))  # the half-filled cache is of use
        assert again.usage.cached_tokens > 0


def test_cancel_between_two_layers_of_a_prefill(tiny_glm: Path) -> None:
    """A chunk need not end first; the layers that had run give back what they took into the cache."""
    cancel = threading.Event()
    long = Conversation([{"role": "user", "content": "word " * 200}])
    with open_local(str(tiny_glm)) as engine:
        expected = done(engine.generate(long, options=GREEDY)).message
    with open_local(str(tiny_glm)) as engine:
        assert engine._runner is not None
        layers = engine._runner._loaded._model.model.layers
        ran: list[int] = []
        for number, layer in enumerate(layers):
            layer.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
        before = done(ask(engine, tiny.HELLO.question))
        ran.clear()
        stop = layers[1].register_forward_pre_hook(lambda *_: cancel.set())
        events = list(engine.generate(long, options=GREEDY, cancel=cancel))
        assert done(events).finish_reason == "interrupted"
        assert not any(isinstance(event, PrefillProgress) for event in events)
        assert ran == [0, 1]  # told to by the hook before it, the second layer's own stopped the forward
        stop.remove()
        again = done(engine.generate(long, options=GREEDY))
        assert again.message == expected
        assert again.usage.cached_tokens > 0  # what the first question began with
        assert before.finish_reason == "stop"


def no_memory_for_more_than(room: int, engine: LocalEngine) -> list[int]:
    """In the second layer; how many tokens were tried."""
    tried: list[int] = []

    def full(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
        tried.append(inputs[0].shape[1])
        if tried[-1] > room:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    assert engine._runner is not None
    engine._runner._loaded._model.model.layers[1].register_forward_pre_hook(full)
    return tried


def test_what_is_read_ahead_is_halved_as_well(tiny_glm: Path) -> None:
    """And a turn that waits for it does not wait for ever."""
    long = Conversation([{"role": "user", "content": "word " * 200}])
    with open_local(str(tiny_glm)) as engine:
        assert engine._runner is not None
        decoder = engine._runner._decoder
        decoder.chunk_ahead = decode.CHUNK_AHEAD_HYBRID
        tried = no_memory_for_more_than(100, engine)
        engine.prepare(long, options=GREEDY)
        until = time.monotonic() + 20
        while not tried and time.monotonic() < until:
            time.sleep(0.01)
        assert done(engine.generate(long, options=GREEDY)).finish_reason == "stop"
        assert sum(count > 100 for count in tried) < 8
        assert decoder.chunk <= 100


def test_a_cache_that_cannot_be_cut_is_not_tried_again(tiny_glm: Path, tmp_path: Path) -> None:
    """What the first layer has taken in would stay there."""
    from transformers import MistralConfig, MistralForCausalLM

    folder = Path(shutil.copytree(tiny_glm, tmp_path / "sliding"))
    known = json.loads((folder / "tokenizer.json").read_text())
    size = len(known["model"]["vocab"]) + len(known["added_tokens"])
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = MistralConfig(vocab_size=size, num_hidden_layers=2, sliding_window=512, **shape)
    MistralForCausalLM(config).save_pretrained(folder)
    with open_local(str(folder)) as engine:
        tried = no_memory_for_more_than(100, engine)
        with pytest.raises(ModelError, match="does not fit in memory"):
            ask(engine, "word " * 200)
        assert len(tried) == 1
        assert done(ask(engine, "word", options=GenerationOptions(max_tokens=2)))


@pytest.mark.parametrize("idle", ["page_more", "compile_more"])
def test_what_is_done_meanwhile_may_fail(tiny_glm: Path, idle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()

    def fails(_: LoadedModel) -> bool:
        failed.set()
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(local, "IDLE_S", 0.05)
    monkeypatch.setattr(LoadedModel, idle, fails)
    with open_local(str(tiny_glm)) as engine:
        assert failed.wait(20)
        assert done(ask(engine, tiny.HELLO.question)).finish_reason == "stop"
        assert not engine.compiling


def test_a_load_that_fails_holds_no_weights(tiny_glm: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_glm, tmp_path / "torn"))
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    del weights

    def held() -> int:
        gc.collect()
        return sum(t.nbytes for t in gc.get_objects() if isinstance(t, torch.nn.Parameter))

    before = held()
    engine = LocalEngine(str(folder))
    with pytest.raises(ModelError, match="lacks weights"):
        engine.wait()
    engine.join()
    assert held() == before


def test_two_engines_load_at_once() -> None:
    code = (
        "import logging; from glmchat.engine.local import LocalEngine\n"
        "engines = [LocalEngine('demo') for _ in range(2)]\n"
        "for engine in engines: engine.wait()\n"
        "assert logging.root.manager.disable == 0\n"
        "for engine in engines: engine.close()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


@pytest.mark.parametrize("speculate", ["off", "lookup"])
def test_no_tokens_at_all(tiny_glm: Path, speculate: str) -> None:
    with open_local(str(tiny_glm), LoadOptions(speculate=speculate)) as engine:
        end = done(ask(engine, tiny.HELLO.question, options=GenerationOptions(max_tokens=0)))
        assert (end.finish_reason, end.usage.completion_tokens, end.message.content) == ("length", 0, "")
        assert done(ask(engine, tiny.HELLO.question)).usage.cached_tokens > 0, "but the prompt was read"


@pytest.mark.parametrize("room", [100, decode.CHUNK_AHEAD, 20])
def test_a_chunk_for_which_there_is_no_memory_is_halved(tiny_glm: Path, room: int) -> None:
    """The first layer has taken it into its part of the cache. Not below what is least."""
    long = Conversation([{"role": "user", "content": "word " * 200}])
    with open_local(str(tiny_glm)) as engine:
        expected = done(engine.generate(long, options=GREEDY)).message
    with open_local(str(tiny_glm)) as engine:
        no_memory_for_more_than(room, engine)
        if room < decode.CHUNK_AHEAD / 2:
            with pytest.raises(ModelError, match="does not fit in memory"):
                list(engine.generate(long, options=GREEDY))
            return
        assert done(engine.generate(long, options=GREEDY)).message == expected
        assert engine._runner is not None
        assert room / 2 < engine._runner._decoder.chunk <= room


def test_a_long_message_can_be_cancelled_while_tokens_are_made_of_it(
    tiny_glm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel, go_on, encoding = threading.Event(), threading.Event(), threading.Event()
    encode = PromptEncoder.encode

    def slow(self: PromptEncoder, messages: Any, *args: Any, **more: Any) -> Prompt:
        if len(messages[-1].content) > LONG:
            encoding.set()
            assert go_on.wait(20)
        return encode(self, messages, *args, **more)

    def cancel_it() -> None:
        assert encoding.wait(20)
        cancel.set()

    with open_local(str(tiny_glm)) as engine:
        monkeypatch.setattr(PromptEncoder, "encode", slow)
        threading.Thread(target=cancel_it).start()
        end = done(ask(engine, "x" * (LONG + 1), cancel=cancel))
        assert (end.finish_reason, end.message.interrupted) == ("interrupted", True)
        assert done(ask(engine, tiny.HELLO.question)).finish_reason == "stop", "nobody waits for it"
        go_on.set()
        with pytest.raises(ContextFullError):
            ask(engine, "x" * (LONG + 1))


def test_context_that_fills_up(tiny_glm: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_glm, tmp_path / "short"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 26}))
    with open_local(str(folder)) as engine:
        last = done(ask(engine, tiny.COUNT.question, options=GenerationOptions(greedy=True, max_tokens=500)))
    assert last.finish_reason == "context"
    assert last.usage.prompt_tokens + last.usage.completion_tokens == 26
    assert tiny.LONG.startswith(last.message.content)


def test_a_long_chat_goes_on_without_its_oldest_turns(tiny_glm: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_glm, tmp_path / "short"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 200}))
    with Chat.from_model(str(folder), options=GenerationOptions(greedy=True, max_tokens=20)) as chat:
        turns = [list(chat.send(tiny.HELLO.question)) for _ in range(20)]
    dropping = [at for at, events in enumerate(turns) if isinstance(events[0], TurnsDropped)]
    assert dropping, "the context was full"
    assert all(b - a > 1 for a, b in pairwise(dropping)), "not at each turn"
    for at, events in enumerate(turns[1:], 1):
        ready = next(e for e in events if isinstance(e, PromptReady))
        assert ready.prompt_tokens <= 200 - 20
        if at in dropping:
            assert ready.prompt_tokens <= 150
        elif ready.prompt_tokens > 100:
            assert ready.cached_tokens > ready.prompt_tokens / 2, "the prefix is still the same"
    assert len(chat.conversation) == 40


def test_loading_does_not_block_the_constructor(tiny_glm: Path) -> None:
    started = time.perf_counter()
    engine = LocalEngine(str(tiny_glm))
    assert time.perf_counter() - started < 0.5
    assert done(ask(engine, tiny.HELLO.question)).message.content == "Hello! How can I help you?"
    engine.close()


def test_close_ends_a_load(tiny_glm: Path) -> None:
    loading, closed = threading.Event(), threading.Event()

    def on_progress(progress: LoadProgress) -> None:
        if progress.total:
            loading.set()
            assert closed.wait(10)

    before = set(threading.enumerate())
    engine = LocalEngine(str(tiny_glm), on_progress=on_progress)
    assert loading.wait(60)
    engine.close()
    closed.set()
    with pytest.raises(ModelError, match="closed before"):
        engine.wait()
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before


def test_another_chat_model_by_the_same_program(smollm2_folder: Path) -> None:
    """SmolLM2-135M-Instruct, ChatML template: two turns, the second only understood with the first."""
    conversation = Conversation([{"role": "user", "content": "What is the capital of France?"}])
    with open_local(str(smollm2_folder)) as engine:
        assert not engine.info.thinks
        first = done(engine.generate(conversation, options=GREEDY))
        assert first.message.content == "The capital of France is Paris."
        assert first.finish_reason == "stop"
        conversation.append(first.message)
        conversation.append({"role": "user", "content": "And of Japan?"})
        second = done(engine.generate(conversation, options=GREEDY))
        assert second.message.content == "The capital of Japan is Tokyo."
        assert second.usage.cached_tokens > first.usage.prompt_tokens
