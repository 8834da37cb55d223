from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from glmchat.terminal import blocks
from glmchat.terminal.blocks import BlockSplitter, newest
from glmchat.terminal.screen import Looks, Screen
from glmchat.terminal.transcript import Answer

from .documents import DOCUMENTS

DOCUMENT = """\
# Title
A first paragraph
on two lines.

1. one

   more of one
2. two
   - nested
> quoted
lazy

```python
def f():

    return 1
```
| a | b |
|---|---|
| 1 | 2 |

Heading by line
---
    not code

    code

***
last"""
BLOCKS = [
    "# Title",
    "A first paragraph\non two lines.",
    "1. one\n\n   more of one\n2. two\n   - nested",
    "> quoted\nlazy",
    "```python\ndef f():\n\n    return 1\n```",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "Heading by line\n---",
    "    not code\n\n    code",
    "***",
    "last",
]


def split(text: str, size: int) -> list[str]:
    splitter, blocks = BlockSplitter(), []
    for start in range(0, len(text), size):
        blocks += splitter.feed(text[start : start + size])
    return blocks + splitter.flush()


@pytest.mark.parametrize("size", [*range(1, 30), 10_000])
def test_blocks_are_the_same_for_every_cut(size: int) -> None:
    assert split(DOCUMENT, size) == BLOCKS


def test_a_block_is_final_when_the_next_one_has_a_whole_line() -> None:
    splitter = BlockSplitter()
    assert splitter.feed("para\n\n") == []
    assert splitter.feed("- it") == []
    assert splitter.open == "para\n\n- it"
    assert splitter.feed("em\n") == ["para"]
    assert splitter.open == "- item\n"
    assert splitter.feed("\n- second\n") == [], "a list goes on over a blank line"
    assert splitter.feed("end\n") == []
    assert splitter.flush() == ["- item\n\n- second\nend"]
    assert splitter.open == ""


@pytest.mark.parametrize("document", [DOCUMENT, *DOCUMENTS])
def test_streamed_is_drawn_as_in_one_go(document: str) -> None:
    """For every size of chunk: the same blocks, none of which a later one could change."""
    whole = split(document, max(1, len(document)))
    for size in range(1, 65):
        assert split(document, size) == whole
    assert "".join("".join(whole).split()) == "".join(document.split()), "nothing is lost"
    for block in whole:
        assert split(block, 1) == [block], "a block stands for itself"


lines = st.sampled_from(
    [
        "",
        "text",
        "- item",
        "  - deep",
        "1. one",
        "2. two",
        "> quote",
        "```",
        "~~~py",
        "    code",
        "---",
        "===",
        "# head",
        "| a | b |",
        "|---|---|",
        "<div>",
        "</div>",
        "[a]: http://x",
        "a | b",
        "-|-",
        "***",
        "\ttab",
        "* x",
        "-",
        "  ",
        "$$",
        "$$ x",
        "\\[",
        "x \\]",
        "```x```",
        "- - -",
        "5. five",
        "12,5",
        "_ x",
        "*a*",
        "``a``",
        "(a)",
        "<b>",
        ": a",
        "___",
    ]
)


@given(st.lists(lines, max_size=14), st.booleans(), st.integers(1, 12))
def test_streamed_equals_at_once(parts: list[str], ends: bool, size: int) -> None:
    text = "\n".join(parts) + ("\n" if ends else "")
    assert split(text, size) == split(text, max(1, len(text)))


@given(st.lists(lines, max_size=14))
def test_no_word_is_lost(parts: list[str]) -> None:
    text = "\n".join(parts)
    assert "".join("".join(split(text, 3)).split()) == "".join(text.split())


def drawn(source: str, width: int = 60) -> str:
    screen = Screen(Console(width=width, highlight=False, markup=False, emoji=False), Looks())
    screen.add(Answer(source))
    return screen.added()


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("one\ntwo", "one\ntwo"),
        ("a <b>tag</b> &amp; <!-- note -->", "a <b>tag</b> & <!-- note -->"),
        ("<div>\nblock\n</div>", "<div>\nblock\n</div>"),
        ("[here](http://evil.example)", "here (http://evil.example)"),
        ("![alt](http://x/y.png)", "!alt (http://x/y.png)"),
        ("[ref]: http://x.example", "[ref]: http://x.example"),
        ("# Big", "Big"),
        ("```python\nx = 1\n```", "python\nx = 1"),
        ("```\nplain\n```", "plain"),
        ("```no-such-language\ny\n```", "no-such-language\ny"),
        ("[bold]not rich markup[/bold] :smile:", "[bold]not rich markup[/bold] :smile:"),
        ("&#x202e;txt.exe&#8297; &#27;[2J &copy;", "<U+202E>txt.exe<U+2069> \ufffd[2J ©"),
        ("# **&#x202e;** | `&#x202e;`", "<U+202E> | &#x202e;"),
    ],
)
def test_nothing_vanishes_when_drawn(source: str, shown: str) -> None:
    assert drawn(source) == shown + "\n\n"


@pytest.mark.parametrize(
    "source",
    [
        "- " * 40 + "deep",
        ">" * 40 + " deep",
        "> - " * 20 + "deep",
        "\n".join("  " * n + f"- item {n}" for n in range(40)) + " deep",
    ],
)
def test_what_is_nested_deeply_does_not_vanish_nor_what_follows(source: str) -> None:
    shown = drawn(f"{source}\n\n# after", width=40)
    for word in (*re.findall(r"item \d+", source), "deep", "after"):
        assert word in shown


def test_drawn_lines_have_no_trailing_blanks() -> None:
    for line in drawn("\n".join(BLOCKS[2:6])).splitlines():
        assert line == line.rstrip()


@pytest.mark.parametrize(
    "source",
    [r"so \(a_1 * b * c\) is", "and $$x*y*z$$ too", "$$\na_1 = *b*\n- c\n$$", "\\[\nx\n\\]"],
)
def test_latex_is_left_as_it_is(source: str) -> None:
    assert drawn(source) == source + "\n\n"


@pytest.mark.parametrize(
    "line",
    [
        "text {n}",
        "{n},2",
        "**{n}**",
        "    x = {n}",
        "- item {n}",
        "code {n}",
        "| {n} | x |",
        "> quote {n}",
        "  - deep {n}",
    ],
)
def test_a_growing_block_is_not_parsed_again_for_each_line(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[int] = []
    parser = blocks._block_parser()
    parse = parser.parse
    monkeypatch.setattr(parser, "parse", lambda text: parsed.append(len(text)) or parse(text))
    begin = {"cod": "```\n", "| {": "| a | b |\n|---|---|\n", "  -": "- top\n"}.get(line[:3], "")
    text = begin + "".join(line.format(n=n) + "\n" for n in range(300))
    assert len(split(text, 7)) == 1
    assert len(parsed) <= 5


def test_the_newest_rows_of_a_block_are_enough_to_draw_it() -> None:
    code = "```py\n" + "\n".join(f"x = {n}" for n in range(500))
    cut = newest(code, 10)
    assert drawn(cut).split("\n")[-12:] == drawn(code).split("\n")[-12:]
    assert len(cut) < 200
    assert newest("word " * 100_000, 10).count(" ") < 1000


@pytest.mark.skipif(
    "COMMONMARK_SPEC" not in os.environ,
    reason="CommonMark's spec.txt is under another licence; name a copy in COMMONMARK_SPEC",
)
def test_commonmarks_own_examples_in_every_cut() -> None:
    spec = Path(os.environ["COMMONMARK_SPEC"]).read_text(encoding="utf-8")
    found = re.findall(r"^`{32} example[^\n]*\n(.*?)^\.\n.*?^`{32}$", spec, re.DOTALL | re.MULTILINE)
    examples = [text.replace("→", "\t") for text in found]
    assert len(examples) > 600
    for text in examples:
        whole = split(text, len(text) or 1)
        assert all(split(text, size) == whole for size in range(1, min(64, len(text)) + 1)), text
