"""Chat templates: a conversation becomes the text that a model was trained on.

A template is ours by name (`glm-4.5`, `glm-4.7`), a file, or the jinja source that a checkpoint brings.
It runs in a sandbox set up as transformers sets up its own, so any model's template gives the same text.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import TemplateError
from ..messages import Message, normalize

NAMES = {"glm-4.5": "glm-4.5", "glm-4.6": "glm-4.5", "glm-4.7": "glm-4.7"}
"""Names of our templates, each with the file it stands in; GLM-4.6 uses that of GLM-4.5."""

_PACKAGE = Path(__file__).resolve().parent.parent
_FOLDERS = (_PACKAGE / "templates", _PACKAGE.parent / "templates")  # in a wheel; in the repository


@dataclass(frozen=True)
class ChatTemplate:
    """A compiled chat template. `special_tokens` (`bos_token` …) are variables that some templates use."""

    source: str
    name: str = "of the checkpoint"
    special_tokens: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            _compile(self.source)
        except Exception as e:  # constants are computed, and may raise anything
            line = f", line {e.lineno}" if isinstance(e, jinja2.TemplateSyntaxError) else ""
            raise TemplateError(
                f"The chat template {self.name} is not valid jinja ({_line(e)}{line})."
            ) from e

    @classmethod
    def load(
        cls, source: str | Path | ChatTemplate, *, special_tokens: Mapping[str, str] | None = None
    ) -> ChatTemplate:
        """`source` is a name of ours, jinja source, or the path of a file that holds it.

        Raises: TemplateError when there is no such file or it is no template.
        """
        if isinstance(source, ChatTemplate):
            return source
        if isinstance(source, str) and ("{{" in source or "{%" in source):
            return cls(source, special_tokens=special_tokens or {})
        name = str(source)
        if name in NAMES:
            file = f"{NAMES[name]}.jinja"
            path = next((p for f in _FOLDERS if (p := f / file).is_file()), _FOLDERS[0] / file)
        else:
            path = Path(os.path.expanduser(source))
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as e:
            reason = e.strerror if isinstance(e, OSError) and e.strerror else _line(e)
            raise TemplateError(
                f"The chat template {name} cannot be read ({reason}); "
                f"give one of {', '.join(NAMES)}, or a jinja file."
            ) from e
        return cls(text, name, special_tokens or {})

    @property
    def knows_thinking(self) -> bool:
        """Whether `enable_thinking` changes what it renders."""
        return "enable_thinking" in _compile(self.source)[1]

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        enable_thinking: bool | None = None,
        clear_thinking: bool | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt for messages in the form that `template_messages` gives. None: leave it to the template.

        Raises: TemplateError, one line, when the template refuses the conversation or fails on it.
        """
        toggles = {"enable_thinking": enable_thinking, "clear_thinking": clear_thinking}
        variables = {
            **self.special_tokens,
            **{name: value for name, value in toggles.items() if value is not None},
            "messages": list(messages),
            "tools": list(tools) if tools else None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return _compile(self.source)[0].render(variables)
        except _Refusal as e:
            raise TemplateError(f"The chat template {self.name} refuses this conversation: {_line(e)}") from e
        except Exception as e:  # whatever an expression of the template raises
            raise TemplateError(
                f"The chat template {self.name} fails on this conversation: {_line(e)}"
            ) from e


def render_prompt(
    messages: Iterable[Message | Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    template: str | Path | ChatTemplate = "glm-4.5",
    enable_thinking: bool | None = None,
    clear_thinking: bool | None = None,
    add_generation_prompt: bool = True,
) -> str:
    """The text of a prompt, as the official template renders it. None: leave it to the template.

    `template` is a name (`glm-4.5`, `glm-4.7`), a file, or jinja source; `tools` are OpenAI declarations.
    Raises: ConversationError for malformed messages, TemplateError when the template refuses them.
    """
    return ChatTemplate.load(template).render(
        template_messages(messages),
        tools,
        enable_thinking=enable_thinking,
        clear_thinking=clear_thinking,
        add_generation_prompt=add_generation_prompt,
    )


def template_messages(messages: Iterable[Message | Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as templates read them.

    An assistant's reasoning is always text, so that no template looks for a think block in its answer.
    """
    out = []
    for message in normalize(messages):
        data = message.to_dict()
        data.pop("interrupted", None)
        if message.role == "assistant":
            data["reasoning_content"] = message.reasoning_content
        out.append(data)
    return out


def thinking_open(prompt: str) -> bool:
    """Whether a prompt leaves the think block open, so that the model's output starts inside it."""
    return prompt.rstrip().endswith("<think>")


class _Refusal(jinja2.TemplateError):
    """What a template raises on purpose, by `raise_exception`."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's text for training; here it only renders its body."""

    tags = {"generation"}  # noqa: RUF012 (declared so by jinja2)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


@lru_cache(maxsize=8)
def _compile(source: str) -> tuple[jinja2.Template, frozenset[str]]:
    """The template and the names of the variables that it reads."""
    environment = _environment()
    tree = environment.parse(source)
    return environment.from_string(tree), frozenset(jinja2.meta.find_undeclared_variables(tree))


class _Sandbox(ImmutableSandboxedEnvironment):
    """Decides once for each type and name what a template may read, as all of it follows from those.

    A template that goes over a long conversation asks thousands of times.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._safe: dict[tuple[type, str], bool] = {}

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether `obj.attr` may be read."""
        of = type(obj), attr
        safe = self._safe.get(of)
        if safe is None:
            safe = self._safe[of] = super().is_safe_attribute(obj, attr, value)
        return safe


def _environment() -> jinja2.Environment:
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON; jinja2's own filter would escape `<`, `>` and `&` for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: object) -> NoReturn:
    raise _Refusal(str(message))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
