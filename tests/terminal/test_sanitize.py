from __future__ import annotations

import itertools
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmchat.terminal.sanitize import Sanitizer, sanitize, sanitize_json


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "␛[31mred␛[0m"),
        ("\x1b]52;c;ZXZpbA==\x07", "␛]52;c;ZXZpbA==␇"),
        ("\x9b31mred", "<U+009B>31mred"),
        ("\x9d0;title\x9c", "<U+009D>0;title<U+009C>"),
        ("safe\rEVIL", "safe␍EVIL"),
        ("a\r\nb", "a\nb"),
        ("a\r\r\nb", "a␍\nb"),
        ("a\r", "a␍"),
        ("ab\x08\x08cd\x7f", "ab␈␈cd␡"),
        ("\x00\x0b\x0c\x0e", "␀␋␌␎"),
        ("abc\u202etxt.exe\u202c", "abc<U+202E>txt.exe<U+202C>"),
        ("\u2066x\u2069", "<U+2066>x<U+2069>"),
        ("half \ud800", "half \ufffd"),
        ("tab\there\nand 中文 é e\u0301 👩\u200d🚀 🏳️\u200d🌈 עברית\u200e", None),
    ],
)
def test_controls_are_shown_and_text_is_kept(raw: str, shown: str | None) -> None:
    assert sanitize(raw) == (raw if shown is None else shown)


spicy = st.text(
    st.one_of(st.sampled_from("\r\n\x1b\x9b\x07\t[]m;\u202e"), st.characters(exclude_categories=()))
)


@given(spicy)
def test_json_means_the_same_and_steers_nothing(text: str) -> None:
    clean = sanitize_json(json.dumps({"x": text}, ensure_ascii=False))
    assert json.loads(clean) == {"x": text}
    assert sanitize(clean) == clean
    assert "\n" not in clean


@given(spicy)
def test_nothing_that_steers_a_terminal_is_left(text: str) -> None:
    clean = sanitize(text)
    clean.encode()
    controls = {c for c in clean if unicodedata.category(c) in ("Cc", "Cs")}
    assert controls <= {"\n", "\t"}
    assert not any(unicodedata.bidirectional(c) in {"LRE", "RLE", "LRO", "RLO", "PDF"} for c in clean)
    assert sanitize(clean) == clean


@given(spicy, st.lists(st.integers(0, 40), max_size=5))
def test_every_cut_gives_the_same(text: str, cuts: list[int]) -> None:
    decoder, out = Sanitizer(), ""
    bounds = [0, *sorted(cuts), len(text)]
    for a, b in itertools.pairwise(bounds):
        out += decoder.feed(text[a:b])
    assert out + decoder.flush() == sanitize(text)


@given(spicy)
def test_printable_text_is_never_lost(text: str) -> None:
    kept = "".join(c for c in text if c.isprintable())
    rest = iter(sanitize(text))
    assert all(c in rest for c in kept), "the printable characters survive, in order"
