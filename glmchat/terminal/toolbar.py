"""The line below the line: what it says, and what gives way where the terminal is narrow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prompt_toolkit.formatted_text import StyleAndTextTuples

from ..events import LoadProgress
from .progress import amount_text
from .wording import bar

NEARLY_FULL, FULL = 0.8, 0.95
"""Shares of the context."""
_BETWEEN = " · "


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that it says; what ranks higher gives way first."""

    rank: int
    text: str
    style: str = ""


def fitted(parts: Sequence[Part], columns: int) -> StyleAndTextTuples:
    """As many of the parts as have room, in their order."""
    kept = list(parts)
    while len(kept) > 1 and sum(len(part.text) + len(_BETWEEN) for part in kept) - len(_BETWEEN) > columns:
        kept.remove(max(kept, key=lambda part: part.rank))
    out: StyleAndTextTuples = []
    for part in kept:
        out += [("", _BETWEEN)] * bool(out) + [(part.style, part.text)]
    return out


def load_parts(progress: LoadProgress) -> list[Part]:
    """How far the model is: `loading weights · ███░░░░░ · 93.0 GB of 221 GB, shard 19 of 46`."""
    if not progress.total:
        return [Part(2, f"{progress.stage} …")]
    share = bar(progress.done / progress.total, 8)
    return [Part(2, progress.stage), Part(1, share), Part(3, amount_text(progress))]


def context_parts(used: int, whole: int) -> list[Part]:
    """How full the context is, in tokens; nothing where that is unknown."""
    if not whole:
        return []
    share = used / whole
    style = "full" if share >= FULL else "nearly-full" if share >= NEARLY_FULL else ""
    style = f"class:toolbar.{style}" * bool(style)
    return [Part(2, bar(share, 8), style), Part(6, f"{used:,} of {whole:,} tokens", style)]
