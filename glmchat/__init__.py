"""glmchat: chat with GLM-4.5 and its siblings, in a terminal, a pipe or a program.

What is listed here is the public API; each name is imported when it is first used, so that
`import glmchat` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .chat import Chat
    from .engine.base import GenerationOptions
    from .errors import (
        ContextFullError,
        ConversationError,
        GlmChatError,
        ModelError,
        ServerError,
        TemplateError,
        UsageError,
    )
    from .events import (
        AnswerDelta,
        Event,
        LoadProgress,
        PrefillProgress,
        PromptReady,
        RoundDone,
        ThinkingDelta,
        ThinkingDone,
        Timing,
        ToolCallBroken,
        ToolCallReady,
        ToolDone,
        ToolOutput,
        ToolServerFailed,
        ToolServersStarting,
        ToolStarted,
        TurnDone,
        TurnsDropped,
        Usage,
    )
    from .glm.encode import encode_prompt
    from .glm.parser import OutputParser, ParsedOutput, parse_output
    from .glm.template import render_prompt
    from .messages import Conversation, Message, ToolCall

    __version__: str

__all__ = [
    "AnswerDelta",
    "Chat",
    "ContextFullError",
    "Conversation",
    "ConversationError",
    "Event",
    "GenerationOptions",
    "GlmChatError",
    "LoadProgress",
    "Message",
    "ModelError",
    "OutputParser",
    "ParsedOutput",
    "PrefillProgress",
    "PromptReady",
    "RoundDone",
    "ServerError",
    "TemplateError",
    "ThinkingDelta",
    "ThinkingDone",
    "Timing",
    "ToolCall",
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
    "UsageError",
    "__version__",
    "encode_prompt",
    "parse_output",
    "render_prompt",
]

_MODULES = {
    "chat": ("Chat",),
    "engine.base": ("GenerationOptions",),
    "glm.encode": ("encode_prompt",),
    "glm.parser": ("OutputParser", "ParsedOutput", "parse_output"),
    "glm.template": ("render_prompt",),
    "messages": ("Conversation", "Message", "ToolCall"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("glmchat")
    elif name in __all__:
        home = _HOME.get(name) or ("errors" if name.endswith("Error") else "events")
        value = getattr(import_module(f".{home}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
