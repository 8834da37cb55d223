"""Where tools come from: named files, a trusted project, the person's own folder."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from glmchat.errors import UsageError
from glmchat.settings import Settings, default_config_path
from glmchat.terminal.start import declarations, project_file, trust
from glmchat.tools.declare import Run, Tool
from glmchat.tools.reading import read_declarations
from glmchat.tools.run import run_call
from glmchat.tools.sandbox import missing, sandboxed
from glmchat.tools.toolbox import Toolbox

from ..pty import terminal

PY = sys.executable


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder and a home of its own."""
    for name in ("CONFIG", "STATE"):
        monkeypatch.delenv(f"XDG_{name}_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    return project


def declare(path: Path, name: str, about: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    function = {"name": name, "description": about}
    path.write_text(json.dumps({"tools": [{"function": function, "run": {"command": ["true"]}}]}))
    return str(path)


def found(settings: Settings) -> dict[str, str]:
    return {tool.name: tool.description for tool in declarations(settings).tools}


def test_levels(tmp_path: Path) -> None:
    named = declare(tmp_path / "a.json", "one", "named")
    declare(project_file(), "one", "project")
    own = default_config_path().parent / "tools.json"
    declare(own, "two", "own")
    assert found(Settings()) == {"two": "own"}, "the project is not trusted"
    trust().add(project_file(), project_file().read_text())
    assert found(Settings()) == {"one": "project", "two": "own"}
    assert found(Settings(tools=(named,))) == {"one": "named", "two": "own"}
    assert found(Settings(tools=(named, "none"))) == {"one": "named"}
    assert found(Settings(tools=("none",))) == {}
    other = declare(tmp_path / "b.json", "one", "other")
    with pytest.raises(UsageError, match=r"one is declared in .*a.json and in .*b.json; rename"):
        declarations(Settings(tools=(named, other)))


def test_trust_is_for_the_text_and_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(project_file(), "one", "project")
    trust().add(project_file(), project_file().read_text())
    assert found(Settings())
    declare(project_file(), "one", "changed")
    assert found(Settings()) == {}
    declare(project_file(), "one", "project")
    assert found(Settings())
    shutil.copytree(".", tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    assert found(Settings()) == {}
    assert (trust().file.stat().st_mode & 0o777) == 0o600


def test_a_terminal_asks_and_shows_the_file(elsewhere: Path) -> None:
    function = {"name": "one", "description": "Evil \x9b2J words."}
    project_file().parent.mkdir()
    project_file().write_text(json.dumps({"tools": [{"function": function}]}, ensure_ascii=False))
    begin = f"import os, sys; os.chdir({str(elsewhere)!r}); from glmchat.cli import main; sys.exit(main())"
    chat = ["-c", begin]

    with terminal(chat) as person:
        person.wait_for("Trust them?")
        assert '"name": "one"' in person.text
        assert "\x9b2J".encode() not in person.raw
        person.send("no\r")
        person.wait_for("/help lists")
        person.send("/tools\r")
        person.wait_for("No tools")
        person.send("\x04")
    with terminal(chat) as person:
        person.wait_for("Trust them?")
        person.send("yes\r")
        person.wait_for("/help lists")
        person.send("/tools\r")
        person.wait_for("shown only")
        person.send("\x04")
    with terminal(chat) as person:
        person.wait_for("/help lists")
        assert "Trust them?" not in person.text
        person.send("\x04")


def test_a_pipe_leaves_them_out_and_says_so() -> None:
    declare(project_file(), "one", "project")
    prompt = [PY, "-m", "glmchat", "--print-prompt", "--model", "demo"]
    done = subprocess.run([*prompt, "hello"], capture_output=True, text=True)
    assert '"one"' not in done.stdout
    assert "tools.json are left out" in done.stderr
    trust().add(project_file(), project_file().read_text())
    done = subprocess.run([*prompt, "hello"], capture_output=True, text=True)
    assert '"one"' in done.stdout
    assert done.stderr == ""
    done = subprocess.run([*prompt, "--tools", "none", "hello"], capture_output=True, text=True)
    assert '"one"' not in done.stdout


def test_a_projects_file_that_cannot_be_read_is_no_fault_of_who_asks_in_its_folder(elsewhere: Path) -> None:
    project_file().parent.mkdir()
    project_file().write_bytes(b"\xff\xfe")
    done = subprocess.run(
        [PY, "-m", "glmchat", "--print-prompt", "--model", "demo", "hello"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "tools.json are left out" in done.stderr
    begin = f"import os, sys; os.chdir({str(elsewhere)!r}); from glmchat.cli import main; sys.exit(main())"
    with terminal(["-c", begin], columns=120) as person:
        person.wait_for("is not UTF-8 at byte 0; save it as UTF-8. (--tools none starts without it.)")
        assert person.wait_end() == 2


def test_a_reload_reads_anew_and_a_fault_leaves_all_as_it_was(tmp_path: Path) -> None:
    path = declare(tmp_path / "a.json", "one", "old")
    box = Toolbox(lambda: read_declarations(path))
    declare(tmp_path / "a.json", "two", "new")
    box.reload()
    assert [tool.name for tool in box.tools] == ["two"]
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UsageError):
        box.reload()
    assert [tool.name for tool in box.tools] == ["two"]
    with pytest.raises(UsageError, match="There is no tool one"):
        box.switch("one", False)


@pytest.mark.skipif(missing() != "", reason=missing() or "-")
def test_a_sandbox_has_no_network_and_changes_nothing(elsewhere: Path) -> None:
    (elsewhere / "kept.txt").write_text("kept")
    code = """
import os, pathlib, socket
print(pathlib.Path("kept.txt").read_text())
for path in ("kept.txt", "new.txt", "/var/tmp/new.txt"):
    try:
        pathlib.Path(path).write_text("changed")
        print("wrote", path)
    except OSError:
        pass
try:
    socket.create_connection(("127.0.0.1", PORT), 1)
    print("connected")
except OSError:
    pass
print("run:", os.listdir("/run"))
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        run: dict[str, Any] = {"command": (PY, "-c", code.replace("PORT", str(port)))}
        tool = Tool({"function": {"name": "t"}})
        assert "connected" in run_call(tool, Run(**run), {}).text
        (elsewhere / "kept.txt").write_text("kept")
        outcome = run_call(tool, Run(**run, sandbox=True), {})
    assert (outcome.text, outcome.ok) == ("kept\nrun: []\n", True)
    slow = Run(command=("sleep", "600"), sandbox=True, timeout_s=0.5)
    assert run_call(tool, slow, {}).note == "timed out after 0.5 s"


def test_a_sandbox_shows_what_is_needed_and_nothing_that_the_model_names(tmp_path: Path) -> None:
    def shown(words: list[str], folder: Path, needed: list[str]) -> list[str]:
        made = sandboxed(words, folder, needed)
        binds = [n for n, word in enumerate(made[: made.index("--")]) if word == "--ro-bind-try"]
        return [made[n + 1] for n in binds if made[n + 1] == made[n + 2]][1:]

    python, medium = "/tmp/venv/bin/python", Path("/run/media/ada/stick/code")
    assert shown(["cat", "/tmp/secret/socket"], Path("/tmp/a/../b/c"), [python, "{x}"]) == [
        "/tmp/b",
        "/tmp/venv",
    ]
    assert shown(["cat"], medium, ["cat"]) == ["/run/media/ada/stick"]
    assert shown(["cat"], Path("/run/user/1000"), ["cat"]) == []
    link = tmp_path / "link"
    link.symlink_to("/tmp/elsewhere/code")
    assert "/tmp/elsewhere" in shown(["cat"], link, ["cat"])


@pytest.mark.skipif(missing() != "", reason=missing() or "-")
def test_a_sandbox_in_a_folder_behind_a_link(elsewhere: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        (Path(folder) / "kept.txt").write_text("kept")
        (elsewhere / "link").symlink_to(folder)
        run = Run(command=("cat", "kept.txt"), cwd=elsewhere / "link", sandbox=True)
        assert run_call(Tool({"function": {"name": "t"}}), run, {}).text == "kept"


def test_no_sandbox_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = {"builtin": "run_command", "sandbox": True}
    (tmp_path / "a.json").write_text(json.dumps({"tools": [{"run": run}]}))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"tools\[0\].run.sandbox: a sandbox needs bubblewrap"):
        read_declarations(str(tmp_path / "a.json"))
