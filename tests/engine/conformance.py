"""What every engine must do, whoever makes its tokens. A test module subclasses EngineConformance.

The engine under test must answer with the tiny checkpoint of `tests.tiny`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import pytest

from glmchat.engine.base import Engine, GenerationOptions
from glmchat.errors import ContextFullError
from glmchat.events import (
    AnswerDelta,
    Event,
    PrefillProgress,
    PromptReady,
    ThinkingDelta,
    ThinkingDone,
    ToolCallReady,
    TurnDone,
)
from glmchat.messages import Conversation, ToolCall
from tests import tiny

GREEDY = GenerationOptions(greedy=True)


def ask(engine: Engine, question: str, **kwargs: Any) -> list[Event]:
    kwargs.setdefault("options", GREEDY)
    return list(engine.generate(Conversation([{"role": "user", "content": question}]), **kwargs))


def done(events: Iterable[Event]) -> TurnDone:
    last = list(events)[-1]
    assert isinstance(last, TurnDone)
    return last


def text(events: Iterable[Event], kind: type[AnswerDelta] | type[ThinkingDelta]) -> str:
    return "".join(e.text for e in events if isinstance(e, kind))


class EngineConformance:
    """Subclasses give the fixtures `engine`, and `fresh`, one that a test may close."""

    def test_events_come_in_order(self, engine: Engine) -> None:
        events = ask(engine, tiny.HELLO.question)
        kinds = [type(e) for e in events]
        assert kinds[0] is PromptReady
        assert kinds.count(TurnDone) == 1
        assert kinds[-1] is TurnDone
        rest = [k for k in kinds if k is not PrefillProgress]
        assert rest == sorted(
            rest, key=[PromptReady, ThinkingDelta, ThinkingDone, AnswerDelta, TurnDone].index
        )
        assert kinds.count(ThinkingDone) == 1

    def test_the_rendered_prompt_is_the_one_that_is_read(self, engine: Engine) -> None:
        conversation = Conversation([{"role": "user", "content": tiny.HELLO.question}])
        prompt = engine.render(conversation, options=GREEDY)
        first = next(e for e in ask(engine, tiny.HELLO.question) if isinstance(e, PromptReady))
        assert prompt is not None
        assert len(prompt.ids) == first.prompt_tokens
        assert prompt.text.endswith("<|assistant|>")
        conversation.append({"role": "assistant", "content": "Hello!"})
        answered = engine.render(conversation, options=GREEDY)
        assert answered is not None
        assert answered.text.endswith("Hello!"), "nothing is asked of the model yet"

    def test_deltas_add_up_to_the_message(self, engine: Engine) -> None:
        events = ask(engine, tiny.HELLO.question)
        message = done(events).message
        assert message.role == "assistant"
        assert message.content == text(events, AnswerDelta) == "Hello! How can I help you?"
        assert message.reasoning_content == text(events, ThinkingDelta) == "A greeting. I greet back."
        assert done(events).finish_reason == "stop"

    def test_thinking_off(self, engine: Engine) -> None:
        events = ask(engine, "hello", options=GenerationOptions(greedy=True, enable_thinking=False))
        assert done(events).message.content == "Hi there."
        assert done(events).message.reasoning_content == ""
        assert not any(isinstance(e, ThinkingDelta) for e in events)
        assert done(events).usage.reasoning_tokens == 0

    def test_characters_of_many_tokens_arrive_whole(self, engine: Engine) -> None:
        events = ask(engine, tiny.CHINESE.question)
        assert all("\ufffd" not in e.text for e in events if isinstance(e, AnswerDelta))
        assert done(events).message.content == "你好！🎉 很高兴见到你。"

    def test_half_a_character_is_not_shown(self, engine: Engine) -> None:
        for limit in range(1, 40):
            options = GenerationOptions(greedy=True, max_tokens=limit)
            answer = done(ask(engine, tiny.CHINESE.question, options=options)).message.content
            assert "你好！🎉 很高兴见到你。".startswith(answer)

    def test_tool_call(self, engine: Engine) -> None:
        events = ask(engine, tiny.CALL.question, tools=[tiny.WEATHER])
        last = done(events)
        assert last.finish_reason == "tool_calls"
        (call,) = last.message.tool_calls
        assert (call.name, call.arguments) == ("get_weather", {"city": "Beijing"})
        assert [e.call for e in events if isinstance(e, ToolCallReady)] == [call]

    def test_conversation_goes_on_after_a_tool_call(self, engine: Engine) -> None:
        conversation = Conversation([{"role": "user", "content": tiny.CALL.question}])
        asked = done(engine.generate(conversation, tools=[tiny.WEATHER], options=GREEDY)).message
        conversation.append(asked)
        conversation.append({"role": "tool", "content": "sunny"})
        options = GenerationOptions(greedy=True, max_tokens=5)
        again = done(engine.generate(conversation, tools=[tiny.WEATHER], options=options))
        assert again.usage.completion_tokens <= 5
        assert isinstance(conversation.messages[1].tool_calls[0], ToolCall)

    def test_token_limit(self, engine: Engine) -> None:
        last = done(ask(engine, tiny.COUNT.question, options=GenerationOptions(greedy=True, max_tokens=20)))
        assert last.finish_reason == "length"
        assert last.usage.completion_tokens == 20
        assert tiny.LONG.startswith(last.message.content)

    def test_usage_and_timing(self, engine: Engine) -> None:
        events = ask(engine, tiny.HELLO.question)
        usage, timing = done(events).usage, done(events).timing
        ready = events[0]
        assert isinstance(ready, PromptReady)
        assert usage.prompt_tokens == ready.prompt_tokens > 0
        assert 0 <= usage.cached_tokens == ready.cached_tokens < usage.prompt_tokens
        assert 0 < usage.reasoning_tokens < usage.completion_tokens
        assert timing.ttft_s is not None
        assert 0 < timing.ttft_s <= timing.total_s
        assert timing.decode_tokens_per_s is not None
        assert timing.decode_tokens_per_s > 0
        (thought,) = (e for e in events if isinstance(e, ThinkingDone))
        assert thought.tokens == usage.reasoning_tokens
        assert thought.closed
        assert 0 <= thought.seconds <= timing.total_s

    def test_cancel_keeps_what_came(self, engine: Engine) -> None:
        cancel = threading.Event()
        events: list[Event] = []
        conversation = Conversation([{"role": "user", "content": tiny.COUNT.question}])
        for event in engine.generate(conversation, options=GREEDY, cancel=cancel):
            events.append(event)
            if isinstance(event, AnswerDelta):
                cancel.set()
        last = done(events)
        assert last.finish_reason == "interrupted"
        assert last.message.interrupted
        assert tiny.LONG.startswith(last.message.content)
        assert last.message.content == text(events, AnswerDelta).strip()
        conversation.append(last.message)  # a valid turn
        assert done(ask(engine, tiny.HELLO.question)).message.content == "Hello! How can I help you?"

    def test_cancel_before_the_start(self, engine: Engine) -> None:
        cancel = threading.Event()
        cancel.set()
        last = done(ask(engine, tiny.HELLO.question, cancel=cancel))
        assert last.finish_reason == "interrupted"
        assert last.message.interrupted
        assert last.message.content == ""

    def test_closed_iterator_stops_the_turn(self, engine: Engine) -> None:
        turn = iter(engine.generate(Conversation([{"role": "user", "content": "count"}]), options=GREEDY))
        next(turn)
        turn.close()  # type: ignore[attr-defined]
        assert done(ask(engine, tiny.HELLO.question)).message.content == "Hello! How can I help you?"

    def test_full_context_is_refused_and_the_engine_stays_usable(self, engine: Engine) -> None:
        with pytest.raises(ContextFullError, match=r"1,024"):
            ask(engine, "word " * 2000)
        assert done(ask(engine, tiny.HELLO.question)).message.content == "Hello! How can I help you?"

    def test_seed_decides_the_answer(self, engine: Engine) -> None:
        def answer(seed: int) -> str:
            options = GenerationOptions(temperature=2.0, top_p=0.99, seed=seed, max_tokens=30)
            message = done(ask(engine, "something new", options=options)).message
            return message.reasoning_content + message.content

        assert answer(1) == answer(1)
        assert len({answer(seed) for seed in range(5)}) > 1

    def test_same_question_same_greedy_answer(self, engine: Engine) -> None:
        """Also when the KV cache already holds the prompt."""
        first, second = done(ask(engine, "something new")), done(ask(engine, "something new"))
        assert first.message == second.message
        assert first.usage.completion_tokens == second.usage.completion_tokens

    def test_close_is_idempotent(self, fresh: Engine) -> None:
        assert fresh.info.context_length == tiny.CONTEXT
        fresh.close()
        fresh.close()
