"""Outputs are parsed as recorded, at every cut, and what streams out never has to be taken back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmchat.events import AnswerDelta, ThinkingDelta, ThinkingDone, ToolCallBroken, ToolCallReady
from glmchat.glm.parser import STOP_TOKENS, OutputParser, ParsedOutput, ParserEvent, parse_output
from glmchat.messages import ToolCall
from tests.golden import load

CASES = [pytest.param(case, id=f"{case['id']}-{case['kind']}") for case in load("output_parsing")]
TAGS = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
]
PIECES = [*TAGS, *STOP_TOKENS, "<", "</", "<|", "name", "k", "7", " ", "\n", "\\n", "{", "text. ", "</think"]
CALL = "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>"

outputs = st.lists(st.sampled_from([*PIECES, CALL]) | st.text(max_size=3), max_size=14).map("".join)


def stream(
    pieces: Iterable[str], tools: Any = None, thinking_open: bool = False
) -> tuple[list[ParserEvent], ParsedOutput]:
    parser = OutputParser(tools, thinking_open)
    events = [event for piece in pieces for event in parser.feed(piece)] + parser.flush()
    return events, parser.result


def check_events(events: list[ParserEvent], result: ParsedOutput) -> None:
    """The events tell the same as the result."""
    thinking = [e for e in events if isinstance(e, ThinkingDelta)]
    assert "".join(e.text for e in thinking) == (result.reasoning or "")
    assert "".join(e.text for e in events if isinstance(e, AnswerDelta)) == (result.content or "")
    assert tuple(e.call for e in events if isinstance(e, ToolCallReady)) == result.tool_calls
    broken = list(result.malformed_tool_calls)
    broken += [] if result.incomplete_tool_call is None else [result.incomplete_tool_call]
    assert [e.raw for e in events if isinstance(e, ToolCallBroken)] == broken
    done = [n for n, e in enumerate(events) if isinstance(e, ThinkingDone)]
    if result.reasoning is None:
        assert done == []
    else:
        assert done == [len(thinking)]  # right behind the last of the thinking, which comes first
        assert events[done[0]] == ThinkingDone(0.0, 0, closed=not result.unclosed_think)
    assert all(e.text for e in events if isinstance(e, ThinkingDelta | AnswerDelta))


def strict(value: Any) -> str:
    """Equal only where types are equal too: 1, 1.0 and true differ."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def as_recorded(result: ParsedOutput) -> dict[str, Any]:
    found = {name: getattr(result, name) for name in ("reasoning", "content", "reasoning_raw", "content_raw")}
    found |= {"unclosed_think": result.unclosed_think, "stop_token": result.stop_token}
    found["tool_calls"] = [{"name": c.name, "arguments": c.arguments} for c in result.tool_calls]
    if result.incomplete_tool_call is not None:
        found["incomplete_tool_call"] = result.incomplete_tool_call
    if result.malformed_tool_calls:
        found["malformed_tool_calls"] = list(result.malformed_tool_calls)
    return found


@pytest.mark.parametrize("case", CASES)
def test_recorded_outputs_at_every_cut(case: dict[str, Any]) -> None:
    text, tools, thinking_open = case["text"], case["tools"], case["thinking_open"]
    whole = parse_output(text, tools=tools, thinking_open=thinking_open)
    assert strict(as_recorded(whole)) == strict(case["expect"])
    for pieces in ([text], list(text), *([text[:n], text[n:]] for n in range(len(text)))):
        events, result = stream(pieces, tools, thinking_open)
        assert strict(as_recorded(result)) == strict(case["expect"]), pieces
        check_events(events, result)


@settings(max_examples=300, deadline=None)
@given(text=outputs, cuts=st.lists(st.integers(0, 200), max_size=8), thinking_open=st.booleans())
def test_no_cut_changes_anything(text: str, cuts: list[int], thinking_open: bool) -> None:
    edges = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    events, result = stream([text], thinking_open=thinking_open)
    check_events(events, result)
    for cut in (pieces, list(text)):
        cut_events, cut_result = stream(cut, thinking_open=thinking_open)
        assert cut_result == result
        check_events(cut_events, cut_result)


@settings(max_examples=200, deadline=None)
@given(text=outputs, thinking_open=st.booleans())
def test_nothing_is_lost(text: str, thinking_open: bool) -> None:
    """Every character of the output that is no white space or markup stands somewhere in the result."""
    result = parse_output(text, thinking_open=thinking_open)
    calls = [
        c
        for call in result.tool_calls
        for c in (call.name, *call.arguments, *map(str, call.arguments.values()))
    ]
    kept = "".join(
        [result.reasoning_raw or "", result.content_raw, result.incomplete_tool_call or "", *calls]
    )
    kept += "".join(result.malformed_tool_calls)
    assert set(text) - set("".join(TAGS) + "".join(STOP_TOKENS) + "\\n") <= set(kept) | set(
        filter(str.isspace, text)
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (["<think>a ", "b ", "</think>", " c", " \n", "d"], ["a", " b", "done", "c", " \nd"]),
        (["<thi", "nk>a</th", "inx", "</think", ">b<", "tool", "x"], ["a", "</thinx", "done", "b", "<toolx"]),
        (["x <tool_call>", "f", CALL[12:]], ["x", "call f"]),
        (["x<tool_call> is", " a tag"], ["x", "<tool_call>", " is a tag"]),
        (["a<|user|>", "b<|user|>"], ["a", "<|user|>b"]),
    ],
)
def test_what_is_decided_is_shown_at_once(text: list[str], expected: list[str]) -> None:
    parser = OutputParser()
    shown = []
    for piece in text:
        for event in parser.feed(piece):
            if isinstance(event, ThinkingDelta | AnswerDelta):
                shown.append(event.text)
            elif isinstance(event, ToolCallReady):
                shown.append(f"call {event.call.name}")
            else:
                shown.append("done")
    assert shown == expected


def test_thinking_says_where_the_output_is() -> None:
    parser = OutputParser()
    states = []
    for piece in ("\n", "<think>", "a", "<tool_call>", "f</tool_call>", "</think>", "b"):
        parser.feed(piece)
        states.append(parser.thinking)
    assert states == [False, True, True, True, True, False, False]
    assert OutputParser(thinking_open=True).thinking
    assert not OutputParser().thinking


def test_a_drafted_call_waits_for_the_end_of_the_thinking() -> None:
    parser = OutputParser()
    assert parser.feed(f"<think>try {CALL} no") == [ThinkingDelta("try")]
    assert parser.feed("</think>ok") == [
        ThinkingDelta(f" {CALL} no"),
        ThinkingDone(0.0, 0),
        AnswerDelta("ok"),
    ]


def test_calls_of_an_unclosed_think_block_come_with_flush() -> None:
    parser = OutputParser()
    parser.feed(f"<think>go{CALL}{CALL}and text<|observation|>")
    call = ToolCall("f", {"a": 1})
    assert parser.flush() == [
        ThinkingDone(0.0, 0, closed=False),
        ToolCallReady(call),
        ToolCallReady(call),
        AnswerDelta("and text"),
    ]
    assert parser.result.stop_token == "<|observation|>"


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "\n<arg_key>a</arg_key><arg_value>1</arg_value>\n",
        "f<arg_key>a</arg_key>",
        "f<arg_key>a",
        "f<arg_key></arg_key><arg_value>1</arg_value>",
        "f<arg_key>a</arg_key>junk<arg_value>1</arg_value>",
        "f<arg_key>a</arg_key><arg_value>1</arg_value>junk",
        "f<arg_value>1</arg_value>",
        "f<arg_key>a</arg_key><arg_key>b</arg_key><arg_value>1</arg_value>",
    ],
)
def test_calls_without_name_or_form_are_never_run(raw: str) -> None:
    result = parse_output(f"x<tool_call>{raw}</tool_call>y{CALL}")
    if raw.startswith("f<arg_value>"):  # no tag of a call follows the name
        assert result.content == f"x<tool_call>{raw}</tool_call>y"
    else:
        assert result.malformed_tool_calls == (raw,)
        assert result.content == "xy"
    assert result.tool_calls == (ToolCall("f", {"a": 1}),)


@pytest.mark.parametrize(
    "text",
    [
        "Write <tool_call> before the name.",
        '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
        "<tool_call>a<tool_call>;",
        "<tool_call>" + "n" * 300 + "</tool_call>",
    ],
)
def test_a_tool_call_tag_that_opens_no_call_is_text(text: str) -> None:
    result = parse_output(text + ".")
    assert result.content == text + "."
    assert result.tool_calls == ()


@pytest.mark.parametrize("text", ["<think>plan</think>It is 4.", "\n\n<think>plan</think>\n\nIt is 4."])
@pytest.mark.parametrize("thinking_open", [False, True])
def test_think_blocks_of_other_models(text: str, thinking_open: bool) -> None:
    result = parse_output(text, thinking_open=thinking_open)
    assert (result.reasoning, result.content) == ("plan", "It is 4.")


@pytest.mark.parametrize(
    "text",
    [
        "<think>" + "word " * 20_000 + "</think>" + "x\n" * 50_000,
        " " * 100_000,
        "<" * 100_000,
        "<tool_call>" * 9_000,
        "<tool_call>a b" * 7_000,
        "<|user|>" * 12_000,
        "<think>" + "<tool_call>f</tool_call>" * 4_000,
        "<tool_call>f<arg_key>a</arg_key><arg_value>" + "</arg_valu" * 10_000,
        "<tool_call>f<arg_key>" + " \\n" * 30_000,
    ],
    ids=lambda text: text[:20].strip() or "spaces",
)
def test_cost_is_linear(text: str) -> None:
    """100 KB, one character at a time, takes half a second; with rescanning it would take minutes."""
    start = time.perf_counter()
    _, cut = stream(text)
    assert time.perf_counter() - start < 10
    assert cut == parse_output(text)


def schema(**properties: Any) -> list[dict[str, Any]]:
    defs = {"Unit": {"enum": ["C", "F"]}, "Size": {"type": "integer"}}
    return [
        {
            "type": "function",
            "function": {"name": "f", "parameters": {"properties": properties, "$defs": defs}},
        }
    ]


@pytest.mark.parametrize(
    ("declared", "raw", "value"),
    [
        ({"type": "string"}, " 5 ", " 5 "),
        ({"type": "string"}, "null", "null"),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "null"]}, "true", "true"),
        ({"type": ["string", "integer"]}, "42", 42),
        ({"type": ["string", "integer"]}, "4.5", "4.5"),
        ({"anyOf": [{"type": "string"}, {"type": "array"}]}, '["a"]', ["a"]),
        ({"type": "integer"}, "5.0", 5),
        ({"type": "number"}, "5.0", 5.0),
        ({"type": "number"}, "5", 5),
        ({"type": "integer"}, "five", "five"),
        ({"type": "boolean"}, "true", True),
        ({"type": "object"}, "{'a': 1}", "{'a': 1}"),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({"enum": [1, 2]}, "1", 1),
        ({"enum": ["auto", 1]}, "auto", "auto"),
        ({"const": "7"}, "7", "7"),
        ({"$ref": "#/$defs/Unit"}, "C", "C"),
        ({"$ref": "#/$defs/Size"}, "3", 3),
        ({"allOf": [{"$ref": "#/$defs/Size"}]}, "3.0", 3),
        ({"$ref": "#/nowhere"}, "3", 3),
        ({"$ref": "#"}, "x", "x"),
        (True, "3", 3),
        ({}, '"quoted"', '"quoted"'),
        ({}, "1e999", "1e999"),
        ({}, "[NaN]", "[NaN]"),
        ({}, '{"a": "\\ud800"}', '{"a": "\\ud800"}'),
        ({}, '{"a": "\\u4f60"}', {"a": "你"}),
        ({}, "9" * 5000, "9" * 5000),
        ({}, "[" * 100_000, "[" * 100_000),
    ],
)
def test_values_are_typed_by_the_schema(declared: Any, raw: str, value: Any) -> None:
    text = f"<tool_call>f<arg_key>a</arg_key><arg_value>{raw}</arg_value></tool_call>"
    (call,) = parse_output(text, tools=schema(a=declared)).tool_calls
    assert strict(call.arguments) == strict({"a": value})


def test_tools_may_be_given_without_their_wrapper() -> None:
    text = "<tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>"
    inner = [schema(a={"type": "string"})[0]["function"]]
    assert parse_output(text, tools=inner).tool_calls == (ToolCall("f", {"a": "1"}),)
