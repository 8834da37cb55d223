"""The few kinds of fault that a person can meet, each with an exit code.

Every message is one line that says what happened, why, and what to do next. A front end prints it
and exits with `exit_code`; a traceback is shown only with `--debug`.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_MODEL = 3
EXIT_SERVER = 4
EXIT_LENGTH = 5
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class GlmChatError(Exception):
    """A fault a person can act on. Base of all that glmchat raises on purpose."""

    exit_code = EXIT_ERROR


class UsageError(GlmChatError):
    """An option, argument, config value or input that cannot be used as given."""

    exit_code = EXIT_USAGE


class ConversationError(GlmChatError):
    """Messages that do not form a conversation (a tool result without its call, an unknown role …)."""


class TemplateError(GlmChatError):
    """A chat template that is missing, broken, or refuses the conversation."""

    exit_code = EXIT_MODEL


class ModelError(GlmChatError):
    """A checkpoint that cannot be found, read, placed on the devices, or run."""

    exit_code = EXIT_MODEL


class ServerError(GlmChatError):
    """A server that cannot be reached or refused the request."""

    exit_code = EXIT_SERVER


class ContextFullError(GlmChatError):
    """The conversation does not fit the model's context."""

    exit_code = EXIT_LENGTH
