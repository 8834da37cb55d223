"""`glmchat tools …` as a person runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glmchat import cli


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(["tools", *words])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_init_then_check(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    assert run(capsys, "init") == (0, "", "tools.json is written. Try it: glmchat --tools tools.json\n")
    written = json.loads((here / "tools.json").read_text())
    assert Path(written["$schema"].removeprefix("file://")).is_file()
    assert run(capsys, "check", "tools.json") == (0, "tools.json: read_file, current_time, find_text\n", "")
    code, out, err = run(capsys, "init")
    assert (code, out) == (2, "")
    assert "is there already" in err


def test_every_fault_of_every_file_is_a_line(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    (here / "a.json").write_text('{"tools": [{"function": {"name": "x y"}, "run": {"command": []}}]}')
    (here / "b.json").write_text('[{"name": "fine"}]')
    code, out, err = run(capsys, "check", "a.json", "b.json")
    assert (code, err) == (2, "")
    assert [line.split(": ")[:2] for line in out.splitlines()] == [
        ["a.json", "tools[0].function.name"],
        ["a.json", "tools[0].run.command"],
        ["b.json", "fine (shown only)"],
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["check"], "Use glmchat tools check FILE"),
        (["chekc", "x"], "did you mean check?"),
        (["check", "missing.json"], "missing.json cannot be read"),
        (["init", "no/such/folder/t.json"], "cannot be written"),
        (["init", "a", "b"], "Use glmchat tools check FILE"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
