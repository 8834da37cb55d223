"""MCP servers: started side by side, their tools listed, their calls passed on.

All of it goes on in one thread with an event loop of its own, so that a server that hangs or dies costs
one error, never the chat. A server that has ended is started again by the next call.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future, wait
from importlib.util import find_spec
from typing import Any

from ..errors import UsageError
from .declare import MAX_OUTPUT, Cancelled, Remote, Server, Tool
from .output import Kept, Outcome, without_middle
from .run import MARK, end_strays

_POLL_S = 0.05
_GRACE_S, _CLOSING_S = 0.5, 5.0
_STDERR_BYTES = 2000  # of a server are kept, to tell why it ended
_MOST_PAGES = 100  # of a list of tools
_LONGEST_NAME = 128
_LONGEST_FAULT = 300


class Servers:
    """The servers of a chat. The constructor returns at once; `wait` waits until each is there or has failed.

    Raises UsageError where the `mcp` package is missing.
    """

    def __init__(self, servers: Sequence[Server]) -> None:
        if find_spec("mcp") is None:
            names = ", ".join(server.name for server in servers)
            raise UsageError(
                f"The MCP servers ({names}) need the mcp package in {sys.prefix}: there pip install "
                f"'glmchat[mcp]', or pipx inject glmchat mcp, or uv pip install --python {sys.prefix} mcp."
            )
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._connections = [_Connection(server) for server in servers]
        self._thread = threading.Thread(target=self._run, name="glmchat-mcp", daemon=True)
        self._thread.start()
        self._starts = {c: asyncio.run_coroutine_threadsafe(c.start(), self._loop) for c in self._connections}

    @property
    def tools(self) -> list[Tool]:
        """Those that are known by now."""
        return [self._tool(c, listed) for c in self._connections for listed in c.listed]

    @property
    def starting(self) -> list[str]:
        """The names of those that are not there yet."""
        return [c.server.name for c, start in self._starts.items() if not start.done()]

    def wait(self, cancelled: Cancelled) -> list[tuple[str, str]]:
        """Wait for all servers; returns the names of those that failed, and why. Each is told once."""
        while not cancelled() and wait(self._starts.values(), _POLL_S).not_done:
            pass
        done = {c: start for c, start in self._starts.items() if start.done()}
        self._starts = {c: start for c, start in self._starts.items() if c not in done}
        return [(c.server.name, start.result()) for c, start in done.items() if start.result()]

    def close(self) -> None:
        """End all servers, and whatever they began."""
        self._closed = True
        ending = [asyncio.run_coroutine_threadsafe(c.stop(), self._loop) for c in self._connections]
        wait(ending, _GRACE_S)  # a server should end when its stdin does
        for connection in self._connections:
            end_strays(connection.mark)
        wait(ending, _CLOSING_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSING_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        # What the SDK logs would be written over the screen; what matters of it comes as an exception.
        logging.getLogger("mcp").addHandler(logging.NullHandler())
        logging.getLogger("mcp").propagate = False
        self._loop.run_forever()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.close()

    def _tool(self, connection: _Connection, listed: Any) -> Tool:
        function = {
            "name": f"{connection.server.name}.{listed.name}",
            "description": listed.description or "",
            "parameters": listed.input_schema,
        }

        def call(name: str, arguments: dict[str, Any], cancelled: Cancelled) -> Outcome:
            return self._call(connection, name, arguments, cancelled)

        run = Remote(connection.server, listed.name, call)
        return Tool({"type": "function", "function": function}, run, connection.server.source)

    def _call(
        self, connection: _Connection, name: str, arguments: dict[str, Any], cancelled: Cancelled
    ) -> Outcome:
        started = time.monotonic()
        if self._closed:
            return Outcome("The call was not run: its server was ended.", ok=False, note="no server")
        asked: Future[Outcome] = asyncio.run_coroutine_threadsafe(
            connection.call(name, arguments), self._loop
        )
        while wait([asked], _POLL_S).not_done:
            why = "stopped by the person" if cancelled() else "its server was ended" if self._closed else ""
            if why:
                asked.cancel()  # the SDK tells the server
                return Outcome(f"The tool was ended: {why}.", ok=False, note=why)
        outcome = asked.result()
        return Outcome(outcome.text, outcome.ok, outcome.note, time.monotonic() - started)


class _Connection:
    """One server. Everything here runs in the event loop."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.mark = uuid.uuid4().hex
        self.listed: list[Any] = []
        """Its tools, as it lists them."""
        self._task: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[Any] | None = None
        self._leave = asyncio.Event()
        self._stderr: Kept | None = None
        self._status = ""  # of its newest answer over HTTP, where that is an error

    async def start(self) -> str:
        """Connect; returns "" or what went wrong."""
        try:
            await self._client()
        except Exception as e:
            return self._told(e)
        return ""

    async def call(self, name: str, arguments: dict[str, Any]) -> Outcome:
        """Never raises, but for being cancelled."""
        from mcp import MCPError
        from mcp_types import CONNECTION_CLOSED, REQUEST_TIMEOUT

        try:
            client = await self._client()
        except Exception as e:
            return Outcome(f"The MCP server {self.server.name} {self._told(e)}.", ok=False, note="no server")
        try:
            result = await client.call_tool(name, arguments, read_timeout_seconds=self.server.timeout_s)
        except MCPError as e:
            if e.code == REQUEST_TIMEOUT:
                why = f"timed out after {self.server.timeout_s:g} s"
                return Outcome(f"The tool was ended: {why}.", ok=False, note=why)
            if e.code != CONNECTION_CLOSED:
                said = f"The MCP server {self.server.name} says: {e.message}{self._status}"
                return Outcome(said, ok=False, note="failed")
        except (RuntimeError, ValueError) as e:  # by the SDK: it is not MCP, or not what the tool declares
            said = f"The MCP server {self.server.name} gave no valid answer: {_one_line(e)}"
            return Outcome(said, ok=False, note="no valid answer")
        except Exception as e:
            logging.getLogger(__name__).debug("the call failed", exc_info=e)
        else:
            return outcome_of(result)
        await self.stop()  # the next call starts it again
        text = f"The MCP server {self.server.name} ended before it answered{self._last_words()}."
        return Outcome(f"{text} The next call starts it again.", ok=False, note="the server ended")

    async def stop(self) -> None:
        """End it; the SDK asks the process, then kills its group."""
        task, self._task = self._task, None
        self._leave.set()
        if task is not None:
            if self._ready is not None and not self._ready.done():
                task.cancel()
            await asyncio.wait([task])

    async def _client(self) -> Any:
        """The open connection, made first where there is none."""
        if self._task is None or self._task.done() or self._ready is None:
            self._leave = asyncio.Event()
            self._ready = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._hold(self._ready, self._leave))
        try:
            return await asyncio.wait_for(asyncio.shield(self._ready), self.server.timeout_s)
        except asyncio.TimeoutError:
            self._task.cancel()
            raise TimeoutError(f"did not answer within {self.server.timeout_s:g} s") from None

    async def _hold(self, ready: asyncio.Future[Any], leave: asyncio.Event) -> None:
        """Connect, list the tools, and keep the connection open until it is to end."""
        self._status = ""
        try:
            async with self._connected() as client:
                self.listed = [tool async for tool in _all_tools(client)]
                ready.set_result(client)
                await leave.wait()
        except (Exception, asyncio.CancelledError) as e:
            if not ready.done():
                ready.set_exception(_leaf(e) if isinstance(e, Exception) else ConnectionError("was ended"))
                ready.exception()  # it is nobody's fault if nobody waits for it any more

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[Any]:
        import httpx2
        from mcp import Client, StdioServerParameters
        from mcp.client.stdio import stdio_client
        from mcp.client.streamable_http import streamable_http_client

        server = self.server
        async with contextlib.AsyncExitStack() as stack:
            if server.url:
                # Only connecting is limited here: each call has a limit of its own, and a stream stays open.
                timeout = httpx2.Timeout(server.timeout_s, read=None)
                http = httpx2.AsyncClient(
                    headers=dict(server.headers),
                    timeout=timeout,
                    event_hooks={"response": [self._note_status]},
                )
                transport = streamable_http_client(
                    server.url, http_client=await stack.enter_async_context(http)
                )
            else:
                program = StdioServerParameters(
                    command=server.command[0],
                    args=list(server.command[1:]),
                    env={**server.env, MARK: self.mark},
                    cwd=server.cwd,
                )
                transport = stdio_client(program, errlog=stack.enter_context(self._captured()))
            yield await stack.enter_async_context(Client(transport))

    async def _note_status(self, response: Any) -> None:
        """The SDK tells but few of them apart: a token that is wrong, a limit, a server that is broken."""
        error = f" ({response.status_code} {response.reason_phrase})"
        self._status = error if response.is_error else ""

    @contextlib.contextmanager
    def _captured(self) -> Iterator[Any]:
        """What a server may write its log to: the end of it is kept, none of it comes to the screen."""
        read, write = os.pipe()
        self._stderr = Kept(os.fdopen(read, "rb"), _STDERR_BYTES, lambda line: None)
        with os.fdopen(write, "w") as file:
            yield file

    def _told(self, fault: Exception) -> str:
        """Why it cannot be reached, behind its name."""
        fault = _leaf(fault)
        if isinstance(fault, FileNotFoundError) and self.server.command:
            return f"cannot be started: there is no program {self.server.command[0]!r}"
        if isinstance(fault, TimeoutError):
            return str(fault) or f"did not answer within {self.server.timeout_s:g} s"
        return f"cannot be reached: {_one_line(fault)}{self._status}{self._last_words()}"

    def _last_words(self) -> str:
        lines = self._stderr.text().strip().splitlines() if self._stderr is not None else []
        return f"; its last words: {lines[-1].strip()}" if lines else ""


async def _all_tools(client: Any) -> AsyncIterator[Any]:
    cursor = None
    for _ in range(_MOST_PAGES):
        page = await client.list_tools(cursor=cursor)
        for tool in page.tools:
            if tool.name and len(tool.name) <= _LONGEST_NAME:
                yield tool
        if not (cursor := page.next_cursor):
            return


def _leaf(fault: BaseException) -> Exception:
    """The first fault within a group of them, which is what the SDK's task groups raise."""
    while inner := getattr(fault, "exceptions", None):
        fault = inner[0]
    return fault if isinstance(fault, Exception) else ConnectionError("was ended")


def _one_line(fault: Exception) -> str:
    """What it says; that of a validator is a page of fields and links."""
    said = " ".join(str(fault).split()) or type(fault).__name__
    return said if len(said) <= _LONGEST_FAULT else f"{said[:_LONGEST_FAULT]} …"


def outcome_of(result: Any) -> Outcome:
    """What a server answered, as text: all that a model can read."""
    parts = [_text(block) for block in result.content]
    if not parts and result.structured_content is not None:
        parts = [json.dumps(result.structured_content, ensure_ascii=False)]
    data = "\n".join(parts).encode(errors="replace")
    room = MAX_OUTPUT // 2
    text = without_middle(data[:room], data[room:][-room:], len(data))
    return Outcome(text, ok=not result.is_error, note="failed" if result.is_error else "")


def _text(block: Any) -> str:
    match block.type:
        case "text":
            return str(block.text)
        case "resource" if hasattr(block.resource, "text"):
            return str(block.resource.text)
        case "resource_link":
            return f"[{block.name}: {block.uri}]"
        case kind:
            return f"[{kind}, {getattr(block, 'mime_type', '')}: not shown]"
