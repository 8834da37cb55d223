"""Words in the line that stand for long pastes."""

from __future__ import annotations

from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from glmchat.terminal.completion import Commands
from glmchat.terminal.pastes import Pastes

LONG, OTHER = ("\n".join(f"{name} {n}" for n in range(12)) for name in ("line", "row"))


def test_a_word_stands_for_a_long_text() -> None:
    pastes = Pastes()
    assert pastes.fold("two\nlines") == "two\nlines"
    assert [pastes.fold(text) for text in (LONG, LONG, OTHER)] == [
        "[pasted 12 lines]",
        "[pasted 12 lines]",
        "[pasted 12 lines, 2]",
    ]
    assert pastes.unfold("see [pasted 12 lines, 2] and [pasted 12 lines]") == f"see {OTHER} and {LONG}"


def test_a_paste_may_hold_the_word_for_another() -> None:
    pastes = Pastes()
    quoting = f"[pasted 12 lines]\n{OTHER}"
    line = " ".join(map(pastes.fold, (LONG, quoting)))
    assert line == "[pasted 12 lines] [pasted 13 lines]"
    assert pastes.unfold(line) == f"{LONG} {quoting}"


def test_a_long_line_is_a_long_paste() -> None:
    """Each key would take a tenth of a second otherwise, or seconds."""
    pastes = Pastes()
    assert pastes.fold("x" * 4000) == "x" * 4000
    word = pastes.fold("x" * 123_456)
    assert word == "[pasted 123,456 characters]"
    assert pastes.unfold(f"see {word}") == "see " + "x" * 123_456
    assert pastes.stray(f"see {word}") == ""
    assert pastes.stray("[pasted 12,345 characters]").startswith("[pasted 12,345 characters] stands for no")


def test_a_newline_at_the_end_begins_no_line() -> None:
    ten = "x\n" * 10
    assert Pastes().fold(ten) == ten
    assert Pastes().fold(ten + "x\n") == "[pasted 11 lines]"


@pytest.mark.parametrize(("at", "span"), [(3, None), (4, (4, 21)), (12, (4, 21)), (20, (4, 21)), (21, None)])
def test_where_a_word_is(at: int, span: tuple[int, int] | None) -> None:
    pastes = Pastes()
    line = f"see {pastes.fold(LONG)} now"
    assert pastes.span(line, at) == span


def test_what_only_looks_like_a_word_is_told() -> None:
    pastes = Pastes()
    word = pastes.fold(LONG)
    assert pastes.stray(f"see {word}") == ""
    assert pastes.stray("see [pasted 13 lines]").startswith("[pasted 13 lines] stands for no pasted text")
    assert pastes.stray(word[:-6]).startswith("[pasted 12 stands for no pasted text")
    assert pastes.stray("[pasted by hand]") == ""


@pytest.mark.parametrize(
    ("typed", "becomes"),
    [
        ("see @pla", "see @plain.txt"),
        ("see @my", 'see @"my notes.txt"'),
        ('see @"my n', 'see @"my notes.txt"'),
        ("see @a", 'see @"a folder'),
        ('see @"a folder/in', 'see @"a folder/inside.txt"'),
        ("me@pla", None),
    ],
)
def test_paths_are_completed_as_they_are_read(
    typed: str, becomes: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a folder").mkdir()
    unquotable = ('my "own" notes.txt', "my\nown.txt")
    for name in ("plain.txt", "my notes.txt", "a folder/inside.txt", *unquotable):
        (tmp_path / name).write_text("x")
    found = list(Commands(list).get_completions(Document(typed), CompleteEvent()))
    lines = [typed[: len(typed) + one.start_position] + one.text for one in found]
    assert lines == ([] if becomes is None else [becomes])
