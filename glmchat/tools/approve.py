"""Who says whether a call may run: the declaration, what the person allowed before, or the person now."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ..messages import ToolCall
from .declare import Tool

Remember: TypeAlias = Literal["once", "session", "always"]


@dataclass(frozen=True, slots=True)
class Request:
    """A call that waits for a word. `words` is the exact argument vector that would be run."""

    tool: Tool
    call: ToolCall
    words: tuple[str, ...]


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

    `allowed` are the names of tools that run without being asked for, `everything` allows all of them.
    `remembered` is the file that keeps what was allowed for always, by a digest of what would be run: a
    declaration that was changed is asked for again.
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
        return "runs" if self._is_allowed(tool) else "asks first"

    def decide(self, request: Request) -> Answer:
        """The answer, which is remembered as far as it says so."""
        tool = request.tool
        if tool.run is None or tool.run.approve == "never":
            return No("the tool's declaration forbids to run it")
        if self._is_allowed(tool):
            return Yes()
        if self.ask is None:
            return No("nobody is there to allow it")
        answer = self.ask(request)
        if isinstance(answer, Yes) and answer.remember != "once":
            self._session.add(_digest(tool))
            if answer.remember == "always":
                self._keep(tool)
        return answer

    def _is_allowed(self, tool: Tool) -> bool:
        assert tool.run is not None
        return (
            tool.run.approve == "always"
            or self.everything
            or tool.name in self.allowed
            or _digest(tool) in self._session
            or _digest(tool) in self._kept()
        )

    def _kept(self) -> dict[str, str]:
        """Digests with the tools' names, for who looks into the file."""
        if self.remembered is None:
            return {}
        try:
            value = json.loads(self.remembered.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def _keep(self, tool: Tool) -> None:
        if self.remembered is None:
            return
        kept = {**self._kept(), _digest(tool): tool.name}
        try:
            self.remembered.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.remembered.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
            self.remembered.chmod(0o600)
        except OSError:
            return  # it is allowed for this session all the same


def _digest(tool: Tool) -> str:
    """Of the declaration and of all that says what is run."""
    text = json.dumps([tool.declaration, repr(tool.run)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
