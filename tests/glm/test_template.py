"""Templates render byte for byte what the official ones do, ours and those of other models."""

from __future__ import annotations

from pathlib import Path

import pytest

from glmchat.errors import ConversationError, TemplateError
from glmchat.glm.template import NAMES, ChatTemplate, render_prompt, template_messages, thinking_open
from glmchat.messages import Message, ToolCall
from tests.golden import load

HELLO = [{"role": "user", "content": "Hello"}]
CASES = [
    pytest.param(name, case, id=case["id"])
    for name, file in (("glm-4.5", "glm45"), ("glm-4.6", "glm46"), ("glm-4.7", "glm47"))
    for case in load(f"chat_template_{file}")
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% if not date_string is defined %}{% set date_string = strftime_now('%Y') %}{% endif %}"
    "{% for message in messages %}{% if message.role == 'system' %}"
    "{{ raise_exception('no system\nmessages') }}{% endif %}"
    "{{ '[INST] ' + message.content | trim + ' [/INST]' + date_string[:2] }}{% endfor %}"
)


def _toggles(case: dict) -> dict:
    names = ("enable_thinking", "clear_thinking", "add_generation_prompt")
    return {name: case[name] for name in names if name in case}


@pytest.mark.parametrize(("name", "case"), CASES)
def test_renders_what_the_official_template_renders(name: str, case: dict) -> None:
    assert render_prompt(case["messages"], case["tools"], template=name, **_toggles(case)) == case["rendered"]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_renders_the_same_in_transformers(name: str, case: dict) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    toggles = {k: v for k, v in _toggles(case).items() if v is not None}
    source = ChatTemplate.load(name).source
    rendered, _ = utils.render_jinja_template(
        [case["messages"]], tools=case["tools"], chat_template=source, **toggles
    )
    assert rendered == [case["rendered"]]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("args_json_string", "<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>"),
        ("args_none", "<tool_call>f\n</tool_call>"),
        ("args_missing", "<tool_call>f\n</tool_call>"),
        ("args_list", "must be an object, not list"),
        ("tool_name_missing", "has no name"),
        ("tool_content_none", "<tool_response>\n\n</tool_response>"),
        ("tool_content_missing", "<tool_response>\n\n</tool_response>"),
        ("tool_content_number", "<tool_response>\n3\n</tool_response>"),
        ("tool_content_mapping", '<tool_response>\n{"temp": 3, "unit": "C"}\n</tool_response>'),
    ],
)
def test_what_the_official_template_cannot_render_is_normalized_or_refused(case: str, expected: str) -> None:
    (found,) = (c for c in load("chat_template_glm45.errors") if c["kind"] == case)
    try:
        outcome = render_prompt(found["messages"], found["tools"])
    except ConversationError as e:
        outcome = str(e)
        assert "\n" not in outcome
    assert expected in outcome
    assert "None" not in outcome


def test_every_error_case_is_tested() -> None:
    assert len(load("chat_template_glm45.errors")) == 9


def test_messages_and_dicts_render_alike() -> None:
    messages = [
        Message("user", "time?"),
        Message("assistant", reasoning_content="r", tool_calls=(ToolCall("now", {"zone": "UTC"}, "call_1"),)),
        Message("tool", "12:00", tool_call_id="call_1"),
    ]
    assert render_prompt(messages) == render_prompt([m.to_dict() for m in messages])


def test_an_answer_that_speaks_of_think_tags_keeps_them() -> None:
    answer = Message("assistant", "The </think> tag ends it.")
    assert "The </think> tag ends it." in render_prompt([Message("user", "q"), answer])


def test_an_interrupted_turn_renders_like_any_other() -> None:
    stopped = [Message("user", "q"), Message("assistant", "half", interrupted=True)]
    whole = [Message("user", "q"), Message("assistant", "half")]
    assert render_prompt(stopped) == render_prompt(whole)
    assert "interrupted" not in template_messages(stopped)[1]


def test_chatml() -> None:
    prompt = render_prompt([Message("system", "s"), *HELLO], template=CHATML, enable_thinking=False)
    assert prompt == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert not ChatTemplate.load(CHATML).knows_thinking


def test_special_tokens_and_the_date_are_variables() -> None:
    template = ChatTemplate.load(LLAMA, special_tokens={"bos_token": "<s>"})
    assert template.render(template_messages([Message("user", " a ")])) == "<s>[INST] a [/INST]20"


def test_a_refusal_is_one_line() -> None:
    with pytest.raises(TemplateError, match=r"refuses this conversation: no system messages$"):
        render_prompt([Message("system", "s")], template=LLAMA)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages[0].a.b }}", "fails on this conversation: 'dict object' has no attribute 'a'"),
        ("{{ 1 / 0 }}", "fails on this conversation: division by zero"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ 10**5000 }}", "is not valid jinja .*limit"),
        ("\n{% if %}", r"is not valid jinja \(.*, line 2\)"),
        ("no-such-file.jinja", r"no-such-file.jinja cannot be read \(No such file.*glm-4.5"),
    ],
)
def test_a_broken_template_is_one_line(template: str, reason: str) -> None:
    with pytest.raises(TemplateError, match=reason) as caught:
        render_prompt(HELLO, template=template)
    assert "\n" not in str(caught.value)


def test_what_may_be_read_depends_on_what_it_is_read_of() -> None:
    template = ChatTemplate.load(
        "{% set own = namespace(pop=7) %}{{ own.pop }}{{ messages.pop(0) if messages }}"
    )
    for _ in range(2):  # the second time all of it was decided before
        assert template.render([]) == "7"
        with pytest.raises(TemplateError, match="'pop' of 'list' object is unsafe"):
            template.render([{"role": "user"}])


def test_a_template_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{% generation %}你好 {{ messages | length }}{% endgeneration %}", encoding="utf-8")
    assert render_prompt(HELLO, template=file) == "你好 1"
    assert render_prompt(HELLO, template=str(file)) == "你好 1"
    file.write_bytes(b"\xff{{")
    with pytest.raises(TemplateError, match="cannot be read"):
        render_prompt(HELLO, template=file)


@pytest.mark.parametrize("name", NAMES)
def test_ours_know_thinking(name: str) -> None:
    assert ChatTemplate.load(name).knows_thinking


@pytest.mark.parametrize(
    ("name", "enable_thinking", "is_open"),
    [("glm-4.5", True, False), ("glm-4.5", False, False), ("glm-4.7", None, True), ("glm-4.7", False, False)],
)
def test_thinking_open(name: str, enable_thinking: bool | None, is_open: bool) -> None:
    assert thinking_open(render_prompt(HELLO, template=name, enable_thinking=enable_thinking)) is is_open
