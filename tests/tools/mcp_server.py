"""An MCP server that behaves badly when asked to, over stdio or HTTP: mcp_server.py [PORT]."""

from __future__ import annotations

import os
import sys
import time
from typing import Annotated

from mcp.server.mcpserver import MCPServer
from pydantic import Field

server = MCPServer("bad manners")


@server.tool()
def echo(text: str) -> str:
    """Give the text back."""
    return text


@server.tool()
def greet(name: Annotated[str, Field(pattern=r"^\p{L}+$")]) -> str:
    """Declared by a regular expression that is none of Python's."""
    return f"Hello {name}"


@server.tool()
def sleep(seconds: float) -> str:
    """Take a while."""
    print("sleeping", file=sys.stderr, flush=True)
    time.sleep(seconds)
    return "awake"


@server.tool()
def die() -> str:
    """End the server in the middle of the call."""
    print("goodbye", file=sys.stderr, flush=True)
    os._exit(1)


@server.tool()
def flood(megabytes: int) -> str:
    """Say far too much."""
    return "x" * (megabytes << 20)


if __name__ == "__main__":
    if sys.argv[1:]:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
    else:
        server.run()
