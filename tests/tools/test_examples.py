"""The example tools, copied to another folder as a person would, and run."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from glmchat.tools.check import argument_faults
from glmchat.tools.declare import Run
from glmchat.tools.output import Outcome
from glmchat.tools.reading import STARTER, check_declarations, read_declarations
from glmchat.tools.run import run_call

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def call(folder: Path, name: str, arguments: dict[str, Any]) -> Outcome:
    (tool,) = (t for t in read_declarations(str(folder / "tools.json")).tools if t.name == name)
    assert isinstance(tool.run, Run)
    assert argument_faults(tool, arguments) == ""
    return run_call(tool, tool.run, arguments)


@pytest.mark.parametrize("name", sorted(p.name for p in EXAMPLES.iterdir()))
def test_every_example_is_sound(name: str) -> None:
    declared, faults = check_declarations(str(EXAMPLES / name / "tools.json"))
    assert faults == ()
    assert declared.tools


def test_weather(tmp_path: Path) -> None:
    folder = shutil.copytree(EXAMPLES / "weather", tmp_path / "weather")
    oslo = call(folder, "get_weather", {"city": "Oslo"})
    assert re.fullmatch(r"\d+°C, [a-z ]+\n", oslo.text)
    assert call(folder, "get_weather", {"city": "oslo"}).text == oslo.text
    assert not call(folder, "get_weather", {"city": "--help"}).ok, "argparse wants a value there"


def test_python(tmp_path: Path) -> None:
    folder = shutil.copytree(EXAMPLES / "python", tmp_path / "python")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", call(folder, "current_time", {}).text)
    assert call(folder, "calculate", {"expression": "2 * (3 + 4) / -7"}).text == "-2.0"
    hostile = call(folder, "calculate", {"expression": "__import__('os').system('id')"})
    assert "is no arithmetic" in hostile.text
    assert not hostile.ok


def test_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("needle\n")
    git = ["git", "-c", "user.name=A", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "a.txt"], ["commit", "-qm", "First step"]):
        subprocess.run([*git, *words], check=True)
    assert "First step" in call(EXAMPLES / "git", "git_log", {}).text
    assert "First step" in call(EXAMPLES / "git", "git_log", {"count": 1, "path": "a.txt"}).text
    assert call(EXAMPLES / "git", "git_grep", {"text": "needle"}).text == "a.txt:1:needle\n"
    assert call(EXAMPLES / "git", "git_grep", {"text": "needle", "folders": ["--output=x"]}).ok is False


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(EXAMPLES / "files", tmp_path / "files")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    assert call(folder, "write_file", {"path": "a/b.txt", "content": "some text\n"}).ok
    assert call(folder, "read_file", {"path": "a/b.txt"}).text == "some text\n"
    assert call(folder, "list_dir", {}).text == "a/"
    assert "a/b.txt:1: some text" in call(folder, "search_files", {"text": "me te"}).text
    assert not call(folder, "read_file", {"path": str(folder / "tools.json")}).ok, "only the current folder"


def test_the_starting_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(STARTER, tmp_path / "tools.json")
    (tmp_path / "a b.txt").write_text("some text\n")
    assert call(tmp_path, "read_file", {"path": "a b.txt"}).text == "some text\n"
    assert call(tmp_path, "find_text", {"text": "me te", "folders": ["."]}).text == "./a b.txt:1:some text\n"
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d", call(tmp_path, "current_time", {}).text)
