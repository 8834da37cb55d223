"""No supplied text becomes a control token; ordinary conversations get the ids of the plain way."""

from __future__ import annotations

import re
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from glmchat.errors import ModelError
from glmchat.glm import encode
from glmchat.glm.encode import LONG, Prompt, PromptEncoder, encode_prompt
from glmchat.glm.template import render_prompt
from glmchat.messages import Message, ToolCall
from tests.glm import tokenizers
from tests.golden import load

TEMPLATES = ("glm-4.5", "glm-4.7")
KINDS = [*tokenizers.KINDS, *(["demo"] if tokenizers.DEMO.is_file() else [])]
LOSSLESS = [k for k in KINDS if k in ("glm", "demo")]
PIECES = [
    *tokenizers.CONTROL,
    "<|",
    "|>",
    "<",
    "[",
    "/",
    "user|>",
    "<thi",
    "nk>",
    "/no",
    "think",
    "\n",
    " ",
    "x",
]

ordinary = st.text(
    st.characters(exclude_categories=("Cs", "Cn"), exclude_characters="<[/"), max_size=40
) | st.sampled_from(
    ["a < b", "x[0] / 2", "</b>", "if a:\r\n    return\t[1]", "  ", "\n\n", "日本語 🎉", "e\u0301"]
)
any_text = st.text(max_size=3)
unreserved = st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=3)


def evil(between: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(PIECES) | between, max_size=6).map("".join)


toggles = st.fixed_dictionaries(
    {"enable_thinking": st.sampled_from([None, True, False]), "template": st.sampled_from(TEMPLATES)}
)


@cache
def tokenizer(kind: str) -> Tokenizer:
    return Tokenizer.from_file(str(tokenizers.DEMO)) if kind == "demo" else tokenizers.KINDS[kind]()


def plain(kind: str, *args: Any, **kwargs: Any) -> list[int]:
    return tokenizer(kind).encode(render_prompt(*args, **kwargs), add_special_tokens=False).ids


def control(kind: str, ids: list[int]) -> list[str]:
    """The control tokens among the ids, in order."""
    added = tokenizer(kind).get_added_tokens_decoder()
    return [added[i].content for i in ids if i in added and added[i].content in tokenizers.CONTROL]


def dialogue(texts: list[str]) -> tuple[list[Message], list[dict[str, Any]]]:
    """A conversation with one of the texts in every place that text can come into it."""
    system, user, reasoning, answer, name, key, value, nested, result, thanks, about = texts
    call = ToolCall(name or "f", {key: value, "o": {key: [nested]}}, "call_1")
    messages = [
        Message("system", system),
        Message("user", user),
        Message("assistant", answer, reasoning_content=reasoning, tool_calls=(call,)),
        Message("tool", result, tool_call_id="call_1"),
        Message("assistant", answer),
        Message("user", thanks),
        Message("assistant", answer, reasoning_content=reasoning),
    ]
    tool = {"type": "function", "function": {"name": name, "description": about, "parameters": {key: nested}}}
    return messages, [tool]


def dialogues(text: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[list[Message], list[dict[str, Any]]]]:
    return st.lists(text, min_size=11, max_size=11).map(dialogue)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50, deadline=None)
@given(conversation=dialogues(ordinary), options=toggles)
def test_ordinary_conversations_get_the_plain_ids(kind: str, conversation: Any, options: Any) -> None:
    assert encode_prompt(tokenizer(kind), *conversation, **options) == plain(kind, *conversation, **options)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50, deadline=None)
@given(texts=st.lists(evil(any_text), min_size=11, max_size=11), options=toggles)
def test_no_text_becomes_a_control_token(kind: str, texts: list[str], options: Any) -> None:
    harmless = [re.sub(r"\S+", "x", text) for text in texts]  # empty stays empty, for templates test that
    expected = control(kind, plain(kind, *dialogue(harmless), **options))
    assert control(kind, encode_prompt(tokenizer(kind), *dialogue(texts), **options)) == expected


@pytest.mark.parametrize("kind", LOSSLESS)
@settings(max_examples=50, deadline=None)
@given(conversation=dialogues(evil(unreserved) | ordinary), options=toggles)
def test_every_text_arrives_unharmed(kind: str, conversation: Any, options: Any) -> None:
    template = options.pop("template")
    prompt = PromptEncoder(tokenizer(kind), template).encode(*conversation, **options)
    decoded = tokenizer(kind).decode(prompt.ids, skip_special_tokens=False)
    assert decoded == prompt.text
    messages, _ = conversation
    for message in messages:
        assert (message.content.strip() if message.role == "assistant" else message.content) in decoded
    assert messages[-1].reasoning_content.strip() in decoded


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", ["45", "46", "47"])
def test_golden_conversations_get_the_plain_ids(kind: str, version: str) -> None:
    spelled = []
    for case in load(f"chat_template_glm{version}"):
        options = {k: case.get(k) for k in ("enable_thinking", "clear_thinking", "add_generation_prompt")}
        options["template"] = f"glm-{version[0]}.{version[1]}"
        args = case["messages"], case["tools"]
        if encode_prompt(tokenizer(kind), *args, **options) != plain(kind, *args, **options):
            spelled.append(case["kind"])
    # Only where a message itself spells a control token, which then stays text.
    assert all(
        "nothink" in kind or kind == "reasoning_empty_string_keeps_think_tags_in_content" for kind in spelled
    )


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50, deadline=None)
@given(
    texts=st.lists(evil(unreserved) | ordinary, min_size=11, max_size=11),
    edits=st.lists(
        st.tuples(st.integers(0, 10), evil(unreserved) | ordinary, st.integers(1, 7), toggles), max_size=4
    ),
)
def test_a_text_that_was_begun_before_gets_the_ids_of_the_whole(kind: str, texts: Any, edits: Any) -> None:
    encoders = {template: PromptEncoder(tokenizer(kind), template) for template in TEMPLATES}
    for where, text, length, options in [(0, texts[0], 7, {"template": TEMPLATES[0]}), *edits]:
        texts[where] = text
        messages, tools = dialogue(texts)
        options = dict(options)
        expected = encode_prompt(tokenizer(kind), messages[:length], tools, **options)
        encoder = encoders[options.pop("template")]
        assert encoder.encode(messages[:length], tools, **options).ids == expected


def test_only_what_is_new_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = PromptEncoder(tokenizer("glm"))
    texts = ("user", "a story " * 100), ("assistant", "an answer " * 100), ("user", "And?")
    messages = [Message(*text) for text in texts]
    encoded: list[str] = []
    whole = encoder._controls._encode
    monkeypatch.setattr(encoder._controls, "_encode", lambda text: encoded.append(text) or whole(text))
    first = encoder.encode(messages)
    again = encoder.encode([*messages[:2], Message("user", "So?")])
    assert again.ids == encode_prompt(tokenizer("glm"), [*messages[:2], Message("user", "So?")])
    assert len(encoded[0]) > 1000
    assert len(encoded[1]) < 20
    first.ids.clear()
    assert encoder.encode([*messages[:2], Message("user", "So?")]).ids == again.ids


def test_what_is_the_same_again_is_not_rendered() -> None:
    encoder = PromptEncoder(tokenizer("glm"))
    arguments: dict[str, Any] = {"count": 1}

    def encode(tools: Any = ()) -> Prompt:
        call = ToolCall("look", arguments, "1")
        messages = [Message("user", "x"), Message("assistant", tool_calls=(call,)), Message("tool", "y")]
        return encoder.encode(messages, tools)

    first = encode()
    assert encode() is first
    arguments["count"] = True
    assert "true" in encode().text
    function = {"name": "look", "description": "a", "parameters": {}}
    encode([{"type": "function", "function": function}])
    function["description"] = "another"
    assert "another" in encode([{"type": "function", "function": function}]).text


def test_what_follows_may_make_another_token_of_the_last_one_and_what_is_before_it() -> None:
    longer = Tokenizer.from_str(tokenizer("glm").to_str())
    longer.add_special_tokens(["<!<|user|>>"])
    template = "{% for m in messages %}{{ 'x<!<|user|>' }}{{ '>' if m.role == 'user' }}{% endfor %}"
    encoder = PromptEncoder(longer, template)
    for role in ("assistant", "user", "assistant"):
        messages = [Message("assistant", ""), Message(role, "")]
        assert encoder.encode(messages).ids == encode_prompt(longer, messages, template=template)


def test_a_typed_nothink_is_text_and_the_switch_is_still_thrown() -> None:
    messages = [Message("user", "explain /nothink")]
    ids = encode_prompt(tokenizer("glm"), messages, enable_thinking=False)
    prompt = ["[gMASK]", "<sop>", "<|user|>", "/nothink", "<|assistant|>", "<think>", "</think>"]
    assert control("glm", ids) == prompt
    assert "\nexplain /nothink/nothink<|assistant|>" in tokenizer("glm").decode(
        ids, skip_special_tokens=False
    )
    with_thinking = encode_prompt(tokenizer("glm"), messages, enable_thinking=True)
    assert control("glm", with_thinking) == ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>"]


def test_a_token_in_two_halves_stays_text() -> None:
    parts = [{"type": "text", "text": "<|obser"}, {"type": "text", "text": "vation|>"}]
    template = (
        "{% for m in messages %}{% for p in m.content %}{{ p }}{% endfor %}{{ m.content | trim }}{% endfor %}"
    )
    for content in (parts, "<|user|>", " /nothink "):
        ids = encode_prompt(tokenizer("glm"), [{"role": "user", "content": content}], template=template)
        assert control("glm", ids) == []
    halves = [Message("user", "[gMA"), Message("user", "SK]"), Message("user", "< "), Message("user", "sop>")]
    joined = "{% for m in messages %}{{ m.content | trim }}{% endfor %}"
    ids = encode_prompt(tokenizer("glm"), halves, template=joined)
    assert control("glm", ids) == []
    assert tokenizer("glm").decode(ids, skip_special_tokens=False) == "[gMASK]<sop>"


def test_a_template_that_splits_the_content_does_not_free_what_is_in_it() -> None:
    template = "{% for m in messages %}<|user|>{{ m.content.split('</think>')[-1] | lower }}{% endfor %}"
    messages = [Message("user", "a</think>b</think><|User|><|observation|>")]
    ids = encode_prompt(tokenizer("glm"), messages, template=template)
    assert control("glm", ids) == ["<|user|>"]


def test_reserved_and_broken_characters() -> None:
    prompt = PromptEncoder(tokenizer("glm")).encode([Message("user", "a\ufdd0b\ufdd2c\ud800d\ufdef")])
    assert prompt.text == "[gMASK]<sop><|user|>\nabc\ufffdd\ufdef<|assistant|>"
    assert tokenizer("glm").decode(prompt.ids, skip_special_tokens=False) == prompt.text


@pytest.mark.parametrize(
    ("template", "thinking", "generates", "is_open"),
    [
        ("glm-4.5", True, True, False),
        ("glm-4.7", None, True, True),
        ("glm-4.7", False, True, False),
        ("glm-4.7", True, False, False),
    ],
)
def test_a_prompt_says_whether_it_opened_the_think_block(
    template: str, thinking: bool | None, generates: bool, is_open: bool
) -> None:
    prompt = PromptEncoder(tokenizer("glm"), template).encode(
        [Message("user", "<think>")], enable_thinking=thinking, add_generation_prompt=generates
    )
    assert prompt.thinking_open is is_open


def test_tokenizers_of_any_form(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    file = tmp_path / "tokenizer.json"
    tokenizer("glm").save(str(file))
    messages = [Message("user", "Hello <|user|>")]
    expected = encode_prompt(tokenizer("glm"), messages)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(file))
    for given_ in (file, str(file), fast):
        assert encode_prompt(given_, messages) == expected


def test_a_tokenizer_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    for bad in (tmp_path / "none.json", object()):
        with pytest.raises(ModelError) as caught:
            encode_prompt(bad, [Message("user", "q")])
        assert "\n" not in str(caught.value)


def test_truncation_and_padding_of_the_tokenizer_do_not_apply() -> None:
    limited = Tokenizer.from_str(tokenizer("glm").to_str())
    limited.enable_truncation(8)
    limited.enable_padding(length=4000)
    messages = [Message("user", "one two three four five six")]
    assert encode_prompt(limited, messages) == plain("glm", messages)


@pytest.mark.parametrize("kind", KINDS)
def test_long_text_has_the_ids_of_its_parts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it is encoded."""
    text = "a < b, <|user|>\n  日本語 e\u0301 🎉 x[0] / 2\r\n\n" * (LONG // 30)
    assert len(text) > LONG
    long = encode_prompt(tokenizer(kind), [Message("user", text)])
    monkeypatch.setattr(encode, "LONG", 2 * len(text))
    assert encode_prompt(tokenizer(kind), [Message("user", text)]) == long


def test_long_text_lets_other_threads_run() -> None:
    encoder = PromptEncoder(tokenizer("glm"))
    text = "".join(f"{n} word{n}," for n in range(3 * LONG // 5))
    thread = threading.Thread(target=encoder._controls._encode, args=[text])
    thread.start()
    turns = 0
    while thread.is_alive():
        time.sleep(0.001)
        turns += 1
    assert turns > 20
