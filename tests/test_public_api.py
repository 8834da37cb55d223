"""The public API is a list: a name is added or removed on purpose, and importing it costs nothing."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest

import glmchat

EVENTS = [
    "AnswerDelta",
    "Event",
    "LoadProgress",
    "PrefillProgress",
    "PromptReady",
    "RoundDone",
    "ThinkingDelta",
    "ThinkingDone",
    "Timing",
    "ToolCallBroken",
    "ToolCallReady",
    "ToolDone",
    "ToolOutput",
    "ToolServerFailed",
    "ToolServersStarting",
    "ToolStarted",
    "TurnDone",
    "TurnsDropped",
    "Usage",
]
ERRORS = [
    "ContextFullError",
    "ConversationError",
    "GlmChatError",
    "ModelError",
    "ServerError",
    "TemplateError",
    "UsageError",
]
VALUES = ["Conversation", "GenerationOptions", "Message", "ParsedOutput", "ToolCall"]
DOING = ["Chat", "OutputParser", "encode_prompt", "parse_output", "render_prompt"]
PUBLIC = [*EVENTS, *ERRORS, *VALUES, *DOING, "__version__"]


def test_the_list() -> None:
    assert sorted(glmchat.__all__) == sorted(PUBLIC)
    assert set(PUBLIC) <= set(dir(glmchat))


@pytest.mark.parametrize("name", [n for n in PUBLIC if n != "__version__"])
def test_each_name_is_there_and_documented(name: str) -> None:
    value = getattr(glmchat, name)
    assert value is getattr(glmchat, name)
    if name != "Event":  # a union of types
        assert value.__name__ == name
        assert (inspect.getdoc(value) or "").strip()


def test_the_version() -> None:
    try:
        installed = version("glmchat")
    except PackageNotFoundError:
        pytest.skip("glmchat is run from its folder, not installed")
    assert glmchat.__version__ == installed


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        glmchat.nonsense  # noqa: B018 (the access is the test)


@pytest.mark.parametrize(
    ("function", "signature"),
    [
        (
            "render_prompt",
            "(messages, tools=None, *, template='glm-4.5', enable_thinking=None, clear_thinking=None, "
            "add_generation_prompt=True)",
        ),
        (
            "encode_prompt",
            "(tokenizer, messages, tools=None, *, template='glm-4.5', enable_thinking=None, "
            "clear_thinking=None, add_generation_prompt=True)",
        ),
        ("parse_output", "(text, *, tools=None, thinking_open=False)"),
        ("OutputParser", "(tools=None, thinking_open=False)"),
    ],
)
def test_signatures(function: str, signature: str) -> None:
    found = inspect.signature(getattr(glmchat, function))
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()]
    assert str(inspect.Signature(bare)) == signature


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import glmchat", ["glmchat.messages", "jinja2", "tokenizers", "torch", "transformers"]),
        ("from glmchat import Chat, parse_output", ["jinja2", "tokenizers", "torch", "transformers", "rich"]),
        (
            "from glmchat import encode_prompt, render_prompt",
            ["torch", "transformers", "rich"],
        ),
    ],
)
def test_imports_are_cheap(statement: str, heavy: list[str]) -> None:
    code = f"import sys; {statement}; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
