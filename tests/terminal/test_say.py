"""What glmchat says on stderr: whole in a pipe, broken between words at a terminal."""

from __future__ import annotations

import contextlib
import sys

import pexpect
import pytest

from glmchat.terminal.say import say

TEXT = "the file /a/long/path-with-hyphens/to/some-where.json cannot be read; give another name"
CODE = f"from glmchat.terminal.say import say; say({TEXT!r})"


def test_is_one_line_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    say(TEXT + "\x1b[31m" + " and more" * 50)
    said = capsys.readouterr().err
    assert said == f"glmchat: {TEXT}␛[31m{' and more' * 50}\n"


@pytest.mark.parametrize("columns", [20, 40, 60, 200])
def test_breaks_between_words_at_a_terminal(columns: int) -> None:
    child = pexpect.spawn(sys.executable, ["-c", CODE], dimensions=(24, columns), encoding="utf-8")
    child.expect(pexpect.EOF)
    lines = child.before.splitlines()
    assert " ".join(lines) == f"glmchat: {TEXT}"
    assert all(len(line) <= columns for line in lines if " " in line)
    assert len(lines) == 1 if columns == 200 else len(lines) > 1


def test_a_full_disk_behind_stderr_is_nobody_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        say(TEXT)
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()


def test_is_silent_where_stderr_was_closed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    say(TEXT)
    assert capfd.readouterr() == ("", "")
