from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import pytest

from glmchat.chat import NOT_RUN, Chat
from glmchat.engine.base import GenerationOptions
from glmchat.errors import ContextFullError, ConversationError, ModelError
from glmchat.events import (
    AnswerDelta,
    Event,
    PromptReady,
    ThinkingDelta,
    ToolCallReady,
    TurnDone,
    TurnsDropped,
)
from glmchat.messages import Conversation, Message, ToolCall

from .scripted import ScriptedEngine, turn


def stored(chat: Chat) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in chat.conversation]


def test_a_turn_is_forwarded_and_stored() -> None:
    script = turn("Hello there", thinking="greet back")
    chat = Chat(ScriptedEngine(script))
    events = list(chat.send("hi"))
    assert events[:-1] == script[:-1]
    answer = Message("assistant", "Hello there", "greet back")
    assert events[-1] == replace(script[-1], messages=(answer,), context_tokens=12)  # type: ignore[type-var]
    assert chat.conversation.messages == (
        Message("user", "hi"),
        answer,
    )


def test_the_engine_sees_system_tools_options_and_all_turns() -> None:
    engine = ScriptedEngine(turn("one"), turn("two"))
    tool = {"name": "now", "parameters": {}}
    options = GenerationOptions(enable_thinking=False, seed=7)
    chat = Chat(engine, system="Be brief.", tools=[tool], options=options)
    list(chat.send("a"))
    list(chat.send("b"))
    conversation, tools, given = engine.seen[1]
    assert [(m.role, m.content) for m in conversation] == [
        ("system", "Be brief."),
        ("user", "a"),
        ("assistant", "one"),
        ("user", "b"),
    ]
    assert tools == (tool,), "as it was declared"
    assert given == options


def test_open_calls_are_answered_as_not_run_when_the_person_goes_on() -> None:
    calls = (ToolCall("now"), ToolCall("now"))
    chat = Chat(ScriptedEngine(turn(calls=calls, reason="tool_calls"), turn("ok")))
    done = list(chat.send("time?"))[-1]
    assert isinstance(done, TurnDone)
    assert [call.id for call in done.message.tool_calls] == ["call_1", "call_2"], (
        "the stored ids are reported"
    )
    list(chat.send("never mind"))
    roles = [m.role for m in chat.conversation]
    assert roles == ["user", "assistant", "tool", "tool", "user", "assistant"]
    results = [m for m in chat.conversation if m.role == "tool"]
    assert [(m.tool_call_id, m.content) for m in results] == [("call_1", NOT_RUN), ("call_2", NOT_RUN)]


def test_cancel_keeps_what_came() -> None:
    chat = Chat(ScriptedEngine(turn("one two three"), turn("next")))
    done = None
    for event in chat.send("count"):
        if event == AnswerDelta("two "):
            chat.cancel()
        done = event
    assert isinstance(done, TurnDone)
    assert done.finish_reason == "interrupted"
    assert chat.conversation.messages[-1] == Message("assistant", "one two", interrupted=True)
    list(chat.send("go on"))
    assert stored(chat)[-1] == ("assistant", "next"), "a cancel does not leak into the next turn"


def test_closing_the_iterator_keeps_what_came() -> None:
    call = ToolCall("now", {"zone": "UTC"})
    engine = ScriptedEngine(turn("partly here", thinking="well", calls=[call]), turn("next"))
    chat = Chat(engine)
    events = chat.send("x")
    for event in events:
        if isinstance(event, ToolCallReady):
            break
    events.close()
    last = chat.conversation.messages[-1]
    assert (last.content, last.reasoning_content, last.interrupted) == ("partly here", "well", True)
    assert [(c.name, c.arguments) for c in last.tool_calls] == [("now", {"zone": "UTC"})]
    assert engine.abandoned == 1, "the engine's iterator is closed too"
    list(chat.send("y"))
    assert chat.conversation.messages[-1].content == "next"


@pytest.mark.parametrize("way", ["cancel", "close"])
def test_stopped_before_anything_came_takes_the_question_back(way: str) -> None:
    chat = Chat(ScriptedEngine(turn("never seen"), turn("yes")), system="S")
    events = chat.send("x")
    assert next(events) == PromptReady(8)
    if way == "cancel":
        chat.cancel()
        assert isinstance(list(events)[-1], TurnDone)
    else:
        events.close()
    assert stored(chat) == [("system", "S")]
    list(chat.send("again"))
    assert stored(chat)[1:] == [("user", "again"), ("assistant", "yes")]


def test_closing_after_the_end_stores_once() -> None:
    chat = Chat(ScriptedEngine(turn("done")))
    events = chat.send("x")
    for event in events:
        if isinstance(event, TurnDone):
            break
    events.close()
    assert stored(chat) == [("user", "x"), ("assistant", "done")]


@pytest.mark.parametrize(
    "script",
    [
        [ContextFullError("full")],
        [PromptReady(8), ModelError("broke")],
        [RuntimeError("a bug")],
    ],
)
def test_a_fault_takes_the_question_back_so_that_a_retry_works(script: list[object]) -> None:
    chat = Chat(ScriptedEngine(turn("first"), script, turn("second")), drop_oldest=False)
    list(chat.send("a"))
    with pytest.raises(type(script[-1])):  # type: ignore[arg-type]
        list(chat.send("b"))
    assert stored(chat) == [("user", "a"), ("assistant", "first")]
    list(chat.send("b"))
    assert stored(chat)[2:] == [("user", "b"), ("assistant", "second")]


def test_a_fault_in_the_midst_of_an_answer_leaves_what_came() -> None:
    script = [PromptReady(8), ThinkingDelta("hm"), AnswerDelta("par"), ModelError("broke")]
    chat = Chat(ScriptedEngine(script, turn("second")))
    with pytest.raises(ModelError):
        list(chat.send("a"))
    assert stored(chat) == [("user", "a"), ("assistant", "par")]
    partial = chat.conversation.messages[-1]
    assert partial.interrupted
    assert partial.reasoning_content == "hm"
    list(chat.send("b"))
    assert stored(chat)[2:] == [("user", "b"), ("assistant", "second")]


def test_goes_on_from_a_given_conversation() -> None:
    conversation = Conversation([Message("user", "a"), Message("assistant", "b")])
    chat = Chat(ScriptedEngine(turn("d")), conversation=conversation)
    list(chat.send("c"))
    assert [m.content for m in conversation] == ["a", "b", "c", "d"]
    with pytest.raises(ConversationError):
        Chat(ScriptedEngine(), system="late", conversation=conversation)


def test_clear_keeps_the_system_message_and_the_context_closes_the_engine() -> None:
    engine = ScriptedEngine(turn("b"))
    with Chat(engine, system="S") as chat:
        list(chat.send("a"))
        chat.clear()
        assert stored(chat) == [("system", "S")]
    assert engine.closed


def test_undo_takes_back_a_whole_exchange() -> None:
    calls = (ToolCall("now"),)
    chat = Chat(ScriptedEngine(turn("one"), turn(calls=calls, reason="tool_calls")), system="Be brief.")
    assert chat.undo() is None
    list(chat.send("a"))
    list(chat.send("b"))
    chat.conversation.append(Message("tool", "noon"))
    assert chat.undo() == "b"
    assert stored(chat) == [("system", "Be brief."), ("user", "a"), ("assistant", "one")]
    assert chat.undo() == "a"
    assert stored(chat) == [("system", "Be brief.")]
    assert chat.undo() is None


def test_render_leaves_the_conversation_as_it_is() -> None:
    calls = (ToolCall("now"),)
    chat = Chat(ScriptedEngine(turn(calls=calls, reason="tool_calls")))
    list(chat.send("time?"))
    prompt = chat.render("never mind")
    assert prompt is not None
    assert prompt.text.endswith(f"<|tool|>{NOT_RUN}<|user|>never mind")
    assert len(chat.conversation) == 2


class SmallEngine(ScriptedEngine):
    """Has a context of 20 tokens, each a word, and keeps to it."""

    def generate(self, conversation: Conversation, **more: Any) -> Generator[Event, None, None]:
        used = len(self.render(conversation).ids)
        if used >= self.info.context_length:
            raise ContextFullError("The context is full.")
        yield from [
            replace(e, prompt_tokens=used) if isinstance(e, PromptReady) else e
            for e in super().generate(conversation, **more)
        ]


def test_a_full_context_drops_the_oldest_exchanges_and_keeps_them_in_the_conversation() -> None:
    engine = SmallEngine(
        turn("a b c d e"), turn(calls=[ToolCall("now")], reason="tool_calls"), turn("k l"), turn("z")
    )
    chat = Chat(engine, system="Be brief.")
    list(chat.send("one two three"))
    list(chat.send("four five"))
    list(chat.send("six"))
    events = list(chat.send("seven eight nine ten eleven twelve thirteen fourteen"))
    assert events[0] == TurnsDropped(1)
    conversation, _, _ = engine.seen[-1]
    assert [m.content for m in conversation][:2] == ["Be brief.", "four five"]
    assert len(chat.conversation) == 1 + 2 + 3 + 2 + 2, "all of it is kept"
    assert chat.render() == engine.render(chat.visible), "what is shown is what is sent"
    chat.clear()
    assert chat.dropped_turns == 0


def test_what_is_taken_back_is_not_dropped_any_more() -> None:
    engine = SmallEngine(turn("a b c d e f g h i j"), *[turn("x")] * 4)
    chat = Chat(engine)
    list(chat.send("one two"))
    list(chat.send("three four five six seven eight nine ten eleven"))
    assert chat.dropped_turns == 1
    while chat.undo() is not None:
        pass
    list(chat.send("first"))
    list(chat.send("second"))
    conversation, _, _ = engine.seen[-1]
    assert [m.content for m in conversation] == ["first", "x", "second"]


def test_room_for_an_answer_is_made_before_the_context_is_quite_full() -> None:
    engine = SmallEngine(turn("a b c d e f g h i j"), turn("x"))
    chat = Chat(engine)
    list(chat.send("one two"))
    assert next(chat.send("three four five six seven eight nine ten eleven")) == TurnsDropped(1)


def test_a_question_that_cannot_fit_at_all_changes_nothing() -> None:
    engine = SmallEngine(turn("a"))
    chat = Chat(engine)
    list(chat.send("one"))
    with pytest.raises(ContextFullError):
        list(chat.send("word " * 30))
    assert (len(chat.conversation), chat.dropped_turns) == (2, 0)


def test_without_dropping_a_full_context_is_an_error() -> None:
    chat = Chat(SmallEngine(turn("a b c d e f g h"), turn("x")), drop_oldest=False)
    list(chat.send("one two"))
    with pytest.raises(ContextFullError):
        list(chat.send("word " * 12))
