"""Medians and the table that every benchmark ends in."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Comparison:
    """Paired measurements of two sides. `goal` is the bound on the ratio ours / theirs; None:
    it is only reported."""

    name: str
    ours: Sequence[float]
    theirs: Sequence[float]
    goal: float | None
    more_is_better: bool

    @property
    def ratio(self) -> float:
        """Median over the pairs: what slows both runs of a pair cancels out."""
        return statistics.median(self.ratios)

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours, self.theirs, strict=True)]

    @property
    def spread(self) -> str:
        """Where the middle half of the pairs' ratios lies: how noisy the machine was."""
        if len(self.ratios) < 4:
            return ""
        low, _, high = statistics.quantiles(self.ratios, n=4)
        return f"{low:.2f} to {high:.2f}"

    @property
    def reached(self) -> bool:
        if self.goal is None:
            return True
        return self.ratio >= self.goal if self.more_is_better else self.ratio <= self.goal


def measure_pairs(
    ours: Callable[[], float], theirs: Callable[[], float], repeats: int
) -> tuple[list[float], list[float]]:
    """Run both sides in turn, each first in every other pair, so that what disturbs one disturbs both."""
    pairs = []
    for number in range(repeats):
        if number % 2:
            second, first = theirs(), ours()
        else:
            first, second = ours(), theirs()
        pairs.append((first, second))
    return [a for a, _ in pairs], [b for _, b in pairs]


def show(title: str, comparisons: Sequence[Comparison]) -> None:
    """Print one line a comparison; exit with 1 when a goal was missed."""
    table = Table(title=title)
    table.add_column("")
    for heading in ("glmchat", "bare", "ratio", "middle half", "goal", "reached"):
        table.add_column(heading, justify="right")
    for c in comparisons:
        table.add_row(
            c.name,
            f"{statistics.median(c.ours):.4g}",
            f"{statistics.median(c.theirs):.4g}",
            f"{c.ratio:.3g}",
            c.spread,
            "" if c.goal is None else f"{'≥' if c.more_is_better else '≤'} {c.goal:g}",
            "" if c.goal is None else "yes" if c.reached else "NO",
        )
    console = Console(width=None if sys.stdout.isatty() else 110)  # a file has no width of its own
    console.print(table)
    pairs = len(comparisons[0].ours)
    console.print(f"Medians of {pairs} interleaved pairs; the ratio is the median of the pairs' ratios.")
    if not all(c.reached for c in comparisons):
        raise SystemExit(1)
