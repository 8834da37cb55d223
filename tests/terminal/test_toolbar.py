from __future__ import annotations

import pytest

from glmchat.events import LoadProgress
from glmchat.terminal.toolbar import Part, context_parts, fitted, load_parts

PARTS = [Part(3, "zai-org/GLM-4.5-Air"), Part(5, "cuda:0"), Part(0, "thinking on"), *context_parts(820, 1000)]


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (200, "zai-org/GLM-4.5-Air · cuda:0 · thinking on · ███████░ · 820 of 1,000 tokens"),
        (75, "zai-org/GLM-4.5-Air · cuda:0 · thinking on · ███████░ · 820 of 1,000 tokens"),
        (74, "zai-org/GLM-4.5-Air · cuda:0 · thinking on · ███████░"),
        (50, "zai-org/GLM-4.5-Air · thinking on · ███████░"),
        (22, "thinking on · ███████░"),
        (21, "thinking on"),
        (5, "thinking on"),
    ],
)
def test_what_matters_least_gives_way_first(columns: int, shown: str) -> None:
    assert "".join(text for _, text, *_ in fitted(PARTS, columns)) == shown


@pytest.mark.parametrize(
    ("used", "style"), [(799, ""), (800, "nearly-full"), (949, "nearly-full"), (950, "full"), (1000, "full")]
)
def test_a_full_context_is_seen_by_its_colour(used: int, style: str) -> None:
    assert {part.style.removeprefix("class:toolbar.") for part in context_parts(used, 1000)} == {style}


def test_an_unknown_context_is_not_shown() -> None:
    assert context_parts(5, 0) == []


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (100, "loading weights · ███░░░░░ · 93.0 GB of 221 GB, shard 19 of 46 · thinking on"),
        (60, "loading weights · ███░░░░░ · thinking on"),
        (30, "███░░░░░ · thinking on"),
        (20, "thinking on"),
    ],
)
def test_a_load_is_seen_on_a_narrow_terminal_too(columns: int, shown: str) -> None:
    parts = [
        *load_parts(LoadProgress("loading weights", 93 * 10**9, 221 * 10**9, 19, 46)),
        Part(0, "thinking on"),
    ]
    assert "".join(text for _, text, *_ in fitted(parts, columns)) == shown
    assert load_parts(LoadProgress("starting")) == [Part(2, "starting …")]
