"""What a declaration says, as values: tools, how their calls are run, and MCP servers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from .output import Outcome

Approve: TypeAlias = Literal["ask", "always", "never"]

PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_-]*)\}")
"""A word of a command that stands for an argument."""

TIMEOUT_S = 30.0
MAX_OUTPUT = 65536


@dataclass(frozen=True, slots=True)
class Run:
    """How the calls of a tool are run, in a process. One of `command`, `python` and `builtin` is given."""

    command: tuple[str, ...] = ()
    python: str = ""
    builtin: str = ""
    stdin_json: bool = False
    timeout_s: float = TIMEOUT_S
    max_output: int = MAX_OUTPUT
    """Bytes of each of stdout and stderr."""
    cwd: Path | None = None
    folder: Path | None = None
    """Where the declaration stands."""
    env: tuple[str, ...] = ()
    roots: tuple[Path, ...] = ()
    """The folders that a built-in tool may touch; empty: the current one."""
    private: bool = False
    """http_get may reach this machine and its private network."""
    sandbox: bool = False
    approve: Approve = "ask"


@dataclass(frozen=True, slots=True)
class Server:
    """An MCP server: a program that speaks over stdin and stdout, or a URL."""

    name: str
    command: tuple[str, ...] = ()
    url: str = ""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: Path | None = None
    timeout_s: float = TIMEOUT_S
    """For its start, and for each call."""
    approve: Approve = "ask"
    source: str = ""


Cancelled: TypeAlias = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Remote:
    """The calls of a tool go to an MCP server, which knows it as `tool`."""

    server: Server
    tool: str
    call: Callable[[str, dict[str, Any], Cancelled], Outcome] = field(repr=False, compare=False)

    @property
    def approve(self) -> Approve:
        return self.server.approve


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool. `declaration` is what the model is told, in OpenAI's form, whole."""

    declaration: Mapping[str, Any]
    run: Run | Remote | None = None
    source: str = ""
    """The file that declares it, as the person gave it."""

    @property
    def name(self) -> str:
        return str(self._function["name"])

    @property
    def description(self) -> str:
        return str(self._function.get("description") or "")

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The JSON Schema of its arguments."""
        return self._function.get("parameters") or {}

    @property
    def _function(self) -> Mapping[str, Any]:
        inner: Mapping[str, Any] = self.declaration.get("function", self.declaration)
        return inner


@dataclass(frozen=True, slots=True)
class Declarations:
    """What one file declares, or several together."""

    tools: tuple[Tool, ...] = ()
    servers: tuple[Server, ...] = ()
