"""Who says whether a call may run: the declaration, what the person allowed before, or the person now."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ..messages import ToolCall
from .declare import Remote, Run, Server, Tool
from .state import add_state, read_state

NOBODY = "nobody is there to allow it"
Remember: TypeAlias = Literal["once", "session", "always"]


@dataclass(frozen=True, slots=True)
class Request:
    """A call that waits for a word. `words` is the exact argument vector that would be run; a call to an MCP
    server has none."""

    tool: Tool
    call: ToolCall
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Yes:
    """Run it; with `arguments` in place of the call's own, where the person changed them."""

    remember: Remember = "once"
    arguments: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class No:
    """Do not run it. `reason` goes to the model."""

    reason: str = ""


Answer: TypeAlias = Yes | No
Ask: TypeAlias = Callable[[Request], Answer]


@dataclass(slots=True)
class Approvals:
    """Decides on each call. `ask` asks the person; without it, what would be asked is refused.

    `allowed` are the names of tools that run without being asked for, or patterns of them (`server.*`);
    `everything` allows all of them. `remembered` is the file that keeps what was allowed for always, by a
    digest of what would be run: a declaration that was changed is asked for again, and in another folder one
    that runs in the current one. Of run_command, which could run anything, it is the very command that is
    remembered.
    """

    ask: Ask | None = None
    allowed: Iterable[str] = ()
    everything: bool = False
    remembered: Path | None = None
    _session: set[str] = field(default_factory=set)

    def state(self, tool: Tool) -> str:
        """What happens to its calls, in a word or two."""
        if tool.run is None:
            return "shown only"
        if tool.run.approve == "never":
            return "never runs"
        return "runs" if self._is_allowed(tool, _digest(Request(tool, ToolCall(tool.name)))) else "asks first"

    def decide(self, request: Request) -> Answer:
        """The answer, which is remembered as far as it says so."""
        tool = request.tool
        if tool.run is None or tool.run.approve == "never":
            return No("the tool's declaration forbids to run it")
        key = _digest(request)
        if self._is_allowed(tool, key):
            return Yes()
        if self.ask is None:
            return No(NOBODY)
        answer = self.ask(request)
        if isinstance(answer, Yes) and answer.remember != "once":
            self._session.add(key)
            if answer.remember == "always":
                self._keep(key, tool.name)
        return answer

    def _is_allowed(self, tool: Tool, key: str) -> bool:
        assert tool.run is not None
        return (
            tool.run.approve == "always"
            or self.everything
            or any(fnmatchcase(tool.name, pattern) for pattern in self.allowed)
            or key in self._session
            or key in self._kept()
        )

    def _kept(self) -> dict[str, str]:
        """Digests with the tools' names, for who looks into the file."""
        return read_state(self.remembered) if self.remembered is not None else {}

    def _keep(self, key: str, name: str) -> None:
        if self.remembered is not None:
            with contextlib.suppress(OSError):  # it is allowed for this session all the same
                add_state(self.remembered, key, name)


def _digest(request: Request) -> str:
    """Of the declaration and of all that says what is run, and where, if that is not in it: in another folder
    the same words may name another program."""
    run = request.tool.run
    parts: list[Any] = [request.tool.declaration, repr(run)]
    started = run.server if isinstance(run, Remote) and run.server.command else run
    if isinstance(started, Run | Server) and started.cwd is None:
        with contextlib.suppress(OSError):  # it was removed: nothing is started there
            parts.append(str(Path.cwd()))
    if isinstance(run, Run) and run.builtin == "run_command":
        parts += request.words
    if isinstance(run, Remote):  # what may hold secrets is not in its repr
        parts += [dict(run.server.env), dict(run.server.headers)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
