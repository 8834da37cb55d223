"""Real MCP servers, as processes and over HTTP: used, missing, hanging, killed in the middle of a call."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from glmchat.chat import Chat
from glmchat.events import ToolDone, ToolServerFailed, ToolServersStarting
from glmchat.messages import ToolCall
from glmchat.terminal.commands import run_command
from glmchat.tools.approve import Answer, Approvals, Request, Yes
from glmchat.tools.declare import Remote, Tool
from glmchat.tools.output import Outcome
from glmchat.tools.reading import read_declarations
from glmchat.tools.run import MARK
from glmchat.tools.toolbox import Toolbox

from ..scripted import ScriptedEngine, turn

HERE = Path(__file__).parent
PY = sys.executable
OURS = f"GLMCHAT_TEST_{os.getpid()}"
LOCAL: dict[str, Any] = {"command": PY, "env": {OURS: "1"}}
TIME = {**LOCAL, "args": ["-m", "mcp_server_time", "--local-timezone", "UTC"]}
BAD = {**LOCAL, "args": [str(HERE / "mcp_server.py")]}


def by_hand(**results: Any) -> dict[str, Any]:
    """A server that gives these to the methods `tools/list` and `tools/call`."""
    told = json.dumps({f"tools/{name}": result for name, result in results.items()})
    return {**LOCAL, "args": [str(HERE / "mcp_by_hand.py"), told]}


Make = Callable[..., Toolbox]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """A toolbox of these servers, which are ended afterwards, and no process of them is left."""
    made: list[Toolbox] = []

    def toolbox(**servers: dict[str, Any]) -> Toolbox:
        file = tmp_path / "tools.json"
        file.write_text(json.dumps({"mcpServers": servers}))
        made.append(Toolbox(lambda: read_declarations(str(file))))
        return made[-1]

    yield toolbox
    for box in made:
        box.close()
    assert processes() == []
    assert not [t for t in threading.enumerate() if t.name == "glmchat-mcp"]


def processes() -> list[int]:
    """Those that were begun for these MCP servers; other tests may run tools beside them."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            environ = entry.read_bytes()
        except OSError:
            continue
        if f"{MARK}=".encode() in environ and f"{OURS}=1".encode() in environ:
            found.append(int(entry.parent.name))
    return found


def ready(box: Toolbox) -> list[ToolServerFailed]:
    return [event for event in box.wait(lambda: False) if isinstance(event, ToolServerFailed)]


def named(box: Toolbox, name: str) -> Tool:
    return next(tool for tool in box.tools if tool.name == name)


def call(box: Toolbox, name: str, arguments: dict[str, Any], **more: Any) -> Outcome:
    run = named(box, name).run
    assert isinstance(run, Remote)
    return run.call(run.tool, arguments, more.get("cancelled", lambda: False))


def test_a_server_from_pypi_is_used_in_a_turn(make: Make) -> None:
    asked: list[Request] = []

    def person(request: Request) -> Answer:
        asked.append(request)
        return Yes()

    noon = {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"}
    wanted = ToolCall("time.convert_time", noon)
    wrong = ToolCall("time.convert_time", {"time": "12:00"})
    engine = ScriptedEngine(
        turn(calls=[wanted], reason="tool_calls"), turn(calls=[wrong], reason="tool_calls"), turn("21:00")
    )
    chat = Chat(engine, tools=make(time=TIME), approvals=Approvals(person))
    events = list(chat.send("go"))
    assert any(isinstance(event, ToolServersStarting) for event in events)
    good, bad = [event for event in events if isinstance(event, ToolDone)]
    assert "21:00:00+09:00" in good.text
    assert "required property" in bad.text, "arguments are checked before the server sees them"
    assert len(asked) == 1
    _, told, _ = engine.seen[0]
    assert {"time.get_current_time", "time.convert_time"} == {t["function"]["name"] for t in told}


def test_a_server_checks_its_own_regular_expressions(make: Make) -> None:
    rounds = [turn(calls=[ToolCall("bad.greet", {"name": n})], reason="tool_calls") for n in ("Zoë", "5")]
    chat = Chat(
        ScriptedEngine(*rounds, turn("ok")), tools=make(bad=BAD), approvals=Approvals(everything=True)
    )
    good, bad = [event for event in chat.send("go") if isinstance(event, ToolDone)]
    assert (good.text, good.ok) == ("Hello Zoë", True)
    assert not bad.ok
    assert "pattern" in bad.text


@pytest.fixture
def url() -> Iterator[str]:
    """Of a real server over HTTP."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([PY, str(HERE / "mcp_server.py"), str(port)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        server.kill()
        server.wait()


def test_a_server_over_http(make: Make, url: str) -> None:
    box = make(web={"type": "http", "url": url, "headers": {"Authorization": "Bearer ${NO_SUCH_TOKEN:-x}"}})
    assert ready(box) == []
    assert call(box, "web.echo", {"text": "<|user|> ü"}) == Outcome(
        "<|user|> ü", ok=True, seconds=pytest.approx(0, abs=20)
    )
    died = call(box, "web.die", {})
    assert (died.ok, "web" in died.text) == (False, True)
    again = call(box, "web.echo", {"text": "a"})
    assert not again.ok, "nobody is there any more, which is an error and no more"


@pytest.mark.parametrize("status", [401, 404, 429, 500])
def test_what_a_server_over_http_answers_is_told(make: Make, status: int) -> None:
    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        (fault,) = ready(make(web={"url": f"http://127.0.0.1:{server.server_port}/mcp"}))
        server.shutdown()
    assert fault.why.startswith("cannot be reached: ")
    assert f"({status} {HTTPStatus(status).phrase})" in fault.why


def test_a_server_that_dies_in_the_middle_of_a_call_costs_one_error(make: Make) -> None:
    box = make(bad=BAD)
    assert ready(box) == []
    died = call(box, "bad.die", {})
    assert (died.ok, died.note) == (False, "the server ended")
    assert "goodbye" in died.text
    assert call(box, "bad.echo", {"text": "back"}).text == "back", "it is started again"


def test_a_server_that_is_killed_in_the_middle_of_a_call(make: Make) -> None:
    box = make(bad=BAD)
    ready(box)
    (server,) = processes()
    threading.Timer(0.5, os.kill, (server, signal.SIGKILL)).start()
    started = time.monotonic()
    assert call(box, "bad.sleep", {"seconds": 60}).note == "the server ended"
    assert time.monotonic() - started < 20


def test_servers_that_are_not_there_are_told_and_the_others_work(make: Make) -> None:
    hanging = {**LOCAL, "command": "sleep", "args": ["600"], "timeout": 1}
    dead = {**LOCAL, "args": ["-c", "import sys; sys.exit('no licence')"]}
    box = make(bad=BAD, missing={"command": "no-such-program"}, hanging=hanging, dead=dead)
    faults = {fault.name: fault.why for fault in ready(box)}
    assert faults.pop("missing") == "cannot be started: there is no program 'no-such-program'"
    assert faults.pop("hanging") == "did not answer within 1 s"
    assert "no licence" in faults.pop("dead")
    assert faults == {}
    assert ready(box) == [], "each is told once"
    assert call(box, "bad.echo", {"text": "I work"}).text == "I work"


def test_tools_that_are_awaited_are_told(make: Make) -> None:
    box = make(slow={**LOCAL, "command": "sleep", "args": ["600"], "timeout": 60})
    said: list[str] = []
    host: Any = SimpleNamespace(chat=Chat(ScriptedEngine(), tools=box), say=said.append)
    run_command(host, "/tools")
    box = host.chat.toolbox = make(
        slow={**LOCAL, "command": "sleep", "args": ["600"], "timeout": 60}, bad=BAD
    )
    while len(box.starting) > 1:
        time.sleep(0.05)
    run_command(host, "/tools")
    assert said[0] == "Waiting for MCP: slow"
    assert said[1].splitlines()[-1] == "Waiting for MCP: slow"
    assert said[1].startswith("bad.echo(text)")


def test_a_call_ends_at_its_timeout_and_when_the_person_stops_it(make: Make) -> None:
    box = make(bad={**BAD, "timeout": 15}, quick={**BAD, "timeout": 8})
    ready(box)
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    started = time.monotonic()
    assert call(box, "bad.sleep", {"seconds": 60}, cancelled=stop.is_set).note == "stopped by the person"
    assert time.monotonic() - started < 5
    assert call(box, "quick.sleep", {"seconds": 60}).note == "timed out after 8 s"


def test_an_answer_that_is_none_is_told_as_such_and_ends_no_server(make: Make) -> None:
    degrees = {"type": "object", "properties": {"degrees": {"type": "integer"}}}
    tool = {"name": "forecast", "inputSchema": {"type": "object"}, "outputSchema": degrees}
    undeclared = {"content": [], "structuredContent": {"degrees": "many"}}
    box = make(
        other=by_hand(list={"tools": [tool]}, call=undeclared),
        junk=by_hand(list={"tools": [tool]}, call={"content": "rain"}),
    )
    assert ready(box) == []
    before = processes()
    for server, why in (("other", "'many' is not of type 'integer'"), ("junk", "content")):
        outcome = call(box, f"{server}.forecast", {})
        assert (outcome.ok, outcome.note) == (False, "no valid answer")
        assert outcome.text.startswith(f"The MCP server {server} gave no valid answer: ")
        assert why in outcome.text
        assert "\n" not in outcome.text
    assert processes() == before


def test_a_list_that_is_none_is_told_in_one_line(make: Make) -> None:
    box = make(junk=by_hand(list={"tools": [{"name": f"tool {number}"} for number in range(100)]}))
    (fault,) = ready(box)
    assert "inputSchema Field required" in fault.why
    assert "\n" not in fault.why
    assert len(fault.why) < 400


def test_a_flood_is_cut(make: Make) -> None:
    box = make(bad=BAD)
    ready(box)
    text = call(box, "bad.flood", {"megabytes": 5}).text
    assert len(text) < 70_000
    assert "bytes are left out here" in text


def test_what_a_file_declares_goes_before_a_servers(tmp_path: Path) -> None:
    tools = [{"function": {"name": "bad.echo", "description": "mine"}}]
    file = tmp_path / "tools.json"
    file.write_text(json.dumps({"tools": tools, "mcpServers": {"bad": BAD}}))
    with closing(Toolbox(lambda: read_declarations(str(file)))) as box:
        ready(box)
        assert named(box, "bad.echo").description == "mine"
        assert [tool.name for tool in box.tools].count("bad.echo") == 1
        box.switch("bad.*", False)
        box.switch("bad.sleep", True)
        assert [tool.name for tool in box.active] == ["bad.sleep"]
        before = processes()
        box.reload()
        ready(box)
        assert len(processes()) == 1
        assert processes() != before


def test_without_the_package(tmp_path: Path) -> None:
    """In a program that cannot import it."""
    (tmp_path / "tools.json").write_text(json.dumps({"mcpServers": {"time": TIME}}))
    code = "import sys; sys.modules['mcp'] = None; from glmchat.cli import main; sys.exit(main())"
    done = subprocess.run(
        [PY, "-c", code, "--tools", str(tmp_path / "tools.json"), "hello"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert f"in {sys.prefix}: there pip install 'glmchat[mcp]', or pipx inject glmchat mcp" in done.stderr
    assert "Traceback" not in done.stderr


def test_servers_that_are_ended_in_the_middle_of_a_call_end_it(make: Make) -> None:
    box = make(bad=BAD)
    ready(box)
    reload = threading.Timer(0.5, box.reload)
    reload.start()
    started = time.monotonic()
    outcome = call(box, "bad.sleep", {"seconds": 60})
    assert not outcome.ok
    assert "ended" in outcome.text
    assert time.monotonic() - started < 20
    reload.join()
