"""Conversations are well-formed whatever they are made of, and what is stored comes back the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmchat.errors import ConversationError
from glmchat.messages import Conversation, Message, ToolCall, normalize

CALLS = [
    {"function": {"name": "f", "arguments": {"a": 1}}},
    {"function": {"name": "g", "arguments": '{"b": 2}'}},
]
ASKED = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": CALLS}]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
calls = st.builds(
    ToolCall, st.text(min_size=1), st.dictionaries(st.text(), json_values, max_size=3), st.text()
)
texts = st.text() | st.sampled_from(["</think>", "<think>a</think>b", "a\n</think>\n"])
messages = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=texts,
    reasoning_content=texts,
    tool_calls=st.lists(calls, max_size=2).map(tuple),
    tool_call_id=st.text(),
    interrupted=st.booleans(),
)


@given(messages)
def test_json_there_and_back(message: Message) -> None:
    assert Message.from_dict(json.loads(json.dumps(message.to_dict()))) == message


@pytest.mark.parametrize(
    ("role", "content", "text"),
    [
        ("user", None, ""),
        ("user", "  a\n", "  a\n"),
        ("user", [], ""),
        ("user", [{"type": "text", "text": "a"}, "b", {"type": "text", "text": "c"}], "abc"),
        ("user", [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "a"}], "a"),
        ("tool", {"temp": 3, "unit": "°C"}, '{"temp": 3, "unit": "°C"}'),
        ("tool", [1, 2], "[1, 2]"),
        ("tool", 3.5, "3.5"),
        ("tool", False, "false"),
        ("tool", [{"type": "text", "text": "a"}], "a"),
    ],
)
def test_content_becomes_text(role: str, content: Any, text: str) -> None:
    assert Message.from_dict({"role": role, "content": content}).content == text
    if content is None:
        assert Message.from_dict({"role": role}).content == text


@pytest.mark.parametrize(
    ("fields", "reasoning", "content"),
    [
        ({"content": "a", "reasoning_content": "r"}, "r", "a"),
        ({"content": "a", "reasoning": "r"}, "r", "a"),
        ({"content": "a", "reasoning_content": None, "reasoning": None}, "", "a"),
        ({"content": "\n<think>\nr\n</think>\n\na"}, "r", "a"),
        ({"content": "r</think>a</think>b"}, "r", "a</think>b"),
        ({"content": "<think>r</think>a", "reasoning_content": ""}, "", "<think>r</think>a"),
        ({"content": "<think>open"}, "", "<think>open"),
    ],
)
def test_reasoning_of_an_assistant(fields: dict[str, Any], reasoning: str, content: str) -> None:
    message = Message.from_dict({"role": "assistant", **fields})
    assert (message.reasoning_content, message.content) == (reasoning, content)


def test_a_user_who_types_think_tags_keeps_them() -> None:
    assert Message.from_dict({"role": "user", "content": "<think>a</think>b"}).content == "<think>a</think>b"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [({"a": 1}, {"a": 1}), ('{"a": 1}', {"a": 1}), (None, {}), ("", {}), ("{}", {}), ({1: 2}, {"1": 2})],
)
def test_arguments_become_a_dict(arguments: Any, expected: dict[str, Any]) -> None:
    assert ToolCall.from_dict({"function": {"name": "f", "arguments": arguments}}).arguments == expected
    assert ToolCall.from_dict({"name": "f", "arguments": arguments}).arguments == expected


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("hello", "must be an object, not str"),
        ({"content": "a"}, "Unknown role None"),
        ({"role": "robot"}, "Unknown role 'robot' in a message; use one of system"),
        ({"role": "user", "content": 3}, "must be text or text parts, not int"),
        ({"role": "user", "content": [3]}, "must be text or text parts, not list"),
        ({"role": "assistant", "reasoning_content": 3}, "must be text or text parts, not int"),
        ({"role": "assistant", "tool_calls": {"name": "f"}}, "must be a list"),
        ({"role": "assistant", "tool_calls": "f"}, "must be a list"),
        ({"role": "assistant", "tool_calls": ["f"]}, "must be an object with `name`"),
        ({"role": "assistant", "tool_calls": [{"function": "f"}]}, "must be an object with `name`"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "has no name"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}, "are not JSON"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[" * 99_999}]}, "are not JSON"),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]},
            "must be an object, not list",
        ),
    ],
)
def test_what_is_no_message_is_refused_in_one_line(message: Any, reason: str) -> None:
    with pytest.raises(ConversationError) as caught:
        normalize([message])
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_calls_get_ids_and_results_find_their_calls() -> None:
    conversation = Conversation([*ASKED, {"role": "tool", "content": "1"}])
    first, second = conversation.messages[1].tool_calls
    assert first.id
    assert second.id
    assert first.id != second.id
    assert conversation.messages[2].tool_call_id == first.id
    assert conversation.unanswered == (second,)
    conversation.append(Message("tool", "2", tool_call_id=second.id))
    assert conversation.unanswered == ()
    assert second.arguments == {"b": 2}


def test_results_may_come_out_of_order_and_once_each() -> None:
    conversation = Conversation(ASKED)
    first, second = conversation.unanswered
    conversation.append(Message("tool", "2", tool_call_id=second.id))
    with pytest.raises(ConversationError, match="which is not waiting"):
        conversation.append(Message("tool", "2", tool_call_id=second.id))
    conversation.append(Message("tool", "1"))
    assert conversation.messages[-1].tool_call_id == first.id
    conversation.append(Message("user", "thanks"))


def test_a_list_of_outputs_answers_each_call() -> None:
    outputs = {"role": "tool", "content": [{"output": "1"}, {"output": {"n": 2}}]}
    conversation = Conversation([*ASKED, outputs])
    assert [m.content for m in conversation.messages[2:]] == ["1", '{"n": 2}']
    assert conversation.unanswered == ()


def test_ids_are_unique_in_a_conversation() -> None:
    call = {"id": "call_1", "name": "f"}
    turns = [{"role": "assistant", "tool_calls": [call, call]}, *[{"role": "tool", "content": "x"}] * 2]
    conversation = Conversation([*turns, *turns])
    ids = [c.id for m in conversation for c in m.tool_calls]
    assert len(set(ids)) == 4
    assert ids[0] == "call_1"


@pytest.mark.parametrize(
    ("history", "message", "reason"),
    [
        ([], Message("tool", "x"), "without a call"),
        (ASKED, Message("user", "next"), "The call of f has no result yet"),
        ([], Message("user", "x", tool_calls=(ToolCall("f"),)), "Only an assistant"),
        (ASKED, Message("tool", "x", tool_call_id="nope"), "'nope', which is not waiting"),
    ],
)
def test_what_would_break_the_form_is_refused(history: Any, message: Message, reason: str) -> None:
    conversation = Conversation(history)
    before = conversation.messages
    with pytest.raises(ConversationError, match=reason):
        conversation.append(message)
    assert conversation.messages == before


def test_clear_copy_and_list() -> None:
    conversation = Conversation([Message("system", "s"), Message("user", "q"), Message("assistant", "a")])
    copy = conversation.copy()
    conversation.clear()
    assert conversation.to_list() == [{"role": "system", "content": "s"}]
    conversation.clear(keep_system=False)
    assert len(conversation) == 0
    assert [m.role for m in copy] == ["system", "user", "assistant"]
    assert Conversation(copy.to_list()).messages == copy.messages


def test_the_system_message_is_set_replaced_and_taken_away() -> None:
    conversation = Conversation([{"role": "user", "content": "hi"}])
    conversation.set_system("Be brief.")
    conversation.set_system("Be kind.")
    assert [(m.role, m.content) for m in conversation] == [("system", "Be kind."), ("user", "hi")]
    conversation.set_system(None)
    assert [m.role for m in conversation] == ["user"]
