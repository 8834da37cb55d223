"""The tools of a chat: those of its declarations and those of MCP servers, each switched on or off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import filter as matching
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..events import ToolServerFailed, ToolServersStarting
from .declare import Cancelled, Declarations, Tool

if TYPE_CHECKING:
    from .mcp import Servers


class Toolbox:
    """`load` reads the declarations, now and at each `reload`; what it raises is passed on."""

    def __init__(self, load: Callable[[], Declarations]) -> None:
        self.off: set[str] = set()
        """Names of tools that the model is not told of."""
        self._load = load
        self._declared: tuple[Tool, ...] = ()
        self._servers: Servers | None = None
        self.reload()

    @property
    def tools(self) -> tuple[Tool, ...]:
        """All of them, as far as their servers are there by now. What a file declares goes before."""
        names = {tool.name for tool in self._declared}
        served = self._servers.tools if self._servers is not None else []
        return (*self._declared, *(tool for tool in served if tool.name not in names))

    @property
    def active(self) -> tuple[Tool, ...]:
        """Those that are on."""
        return tuple(tool for tool in self.tools if tool.name not in self.off)

    @property
    def starting(self) -> tuple[str, ...]:
        """The names of the servers whose tools are not known yet."""
        return tuple(self._servers.starting) if self._servers is not None else ()

    def wait(self, cancelled: Cancelled) -> Iterator[ToolServersStarting | ToolServerFailed]:
        """Wait for the servers, and tell which failed since the last time."""
        if self._servers is None:
            return
        if starting := self.starting:
            yield ToolServersStarting(starting)
        for name, why in self._servers.wait(cancelled):
            yield ToolServerFailed(name, why)

    def reload(self) -> None:
        """Read the declarations anew and start the servers anew. Raises UsageError; all is as before then."""
        declared = self._load()
        servers = None
        if declared.servers:
            from .mcp import Servers

            servers = Servers(declared.servers)
        self.close()
        self._declared, self._servers = declared.tools, servers

    def switch(self, name: str, on: bool) -> None:
        """`name` may be a pattern: `server.*`. Raises UsageError where no tool has such a name."""
        names = set(matching([tool.name for tool in self.tools], name))
        if not names:
            raise UsageError(f"There is no tool {name}; /tools lists them.")
        self.off = self.off - names if on else self.off | names

    def close(self) -> None:
        """End the servers."""
        if self._servers is not None:
            self._servers.close()
        self._servers = None
