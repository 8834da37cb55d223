from __future__ import annotations

import os
from pathlib import Path

import pytest

from glmchat.errors import UsageError
from glmchat.terminal.attach import MAX_BYTES, attach, attached, not_attached, read_block


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_files_follow_the_message_as_named_blocks(here: Path) -> None:
    (here / "a.py").write_text("print(1)\n")
    (here / "b c.md").write_text("~~~\n````\n")
    assert attach('Compare @a.py with @"b c.md", and @a.py again') == (
        'Compare @a.py with @"b c.md", and @a.py again\n\n'
        "a.py:\n```py\nprint(1)\n```\n\n"
        "b c.md:\n`````md\n~~~\n````\n`````"
    )


def test_a_path_may_end_a_sentence(here: Path) -> None:
    (here / "a.txt").write_text("x")
    assert attach("Read @a.txt.").endswith("a.txt:\n```txt\nx\n```")
    assert attach("(see @a.txt)").count("```") == 2
    assert attach("(@a.txt)") == "(@a.txt)", "only at the start of a word"


@pytest.mark.parametrize(
    "text",
    ["@someone hello", "joe@a.txt", "npm i @types/node", "a @ b", "@~nobody-here/x", "ask the @docs team"],
)
def test_what_names_no_file_stays_text(here: Path, text: str) -> None:
    (here / "a.txt").write_text("x")
    (here / "docs").mkdir()
    assert attach(text) == text
    assert attached(text) == ""


def test_of_pasted_text_nothing_is_attached(here: Path) -> None:
    (here / "a.txt").write_text("x")
    assert attach("see @a.txt", "see [pasted 20 lines]") == "see @a.txt"
    assert attach("see @a.txt\n@a.txt", "see @a.txt\n[pasted 20 lines]").count("```") == 2


def test_what_goes_along_is_told(here: Path) -> None:
    (here / "a b.txt").write_text("x" * 2000)
    assert attached('see @"a b.txt" and @nothing.txt') == "Attached: a b.txt (2.0 kB)."


def test_a_home_is_found(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    (here / "a.txt").write_text("\ufeffx")
    assert read_block("~/a.txt").text == "x"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"ab\0c", "is not text: it holds a NUL byte at offset 2"),
        (b"ab\xff", "is not UTF-8 at byte 2"),
        (b"x" * (MAX_BYTES + 1), "is 1.0 MB large; at most 1.0 MB go into a message"),
    ],
)
def test_what_cannot_be_attached_is_refused_with_the_reason(here: Path, data: bytes, said: str) -> None:
    (here / "f").write_bytes(data)
    with pytest.raises(UsageError, match=said):
        attach("look at @f")


def test_what_tells_no_size_is_read_no_further_than_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmchat.terminal.attach.MAX_BYTES", 10)
    with pytest.raises(UsageError, match="is 11 B large; at most 10 B"):
        read_block("/proc/self/status")


def test_missing_folders_and_devices_are_refused(here: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no file no\.txt"):
        read_block("no.txt")
    with pytest.raises(UsageError, match="is no file but a folder"):
        attach(f'list @"{here}"')
    os.mkfifo(here / "pipe")
    with pytest.raises(UsageError, match="is no file but a device"):
        read_block("pipe")


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("see @notes.txt, please", "@notes.txt: no such file here, so it stays text."),
        ("@./a and @~/b.", "@./a, @~/b: no such file here, so they stay text."),
        ("thank @someone for @types/node", ""),
        ('@"quoted and missing.txt"', ""),  # that is a fault
        ("mail me@home.org", ""),
        ("what is in @folder?", "@folder: no such file here, so it stays text."),
    ],
)
def test_a_mention_that_looks_like_a_file_and_is_none(here: Path, text: str, note: str) -> None:
    (here / "folder").mkdir()
    assert not_attached(text) == note
