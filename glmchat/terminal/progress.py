"""The bar on stderr while a model loads: stage, bytes, shards, time left; erased when done."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ..engine.base import Engine, ModelInfo
from ..events import LoadProgress
from .wording import size_text


class LoadState:
    """The newest LoadProgress, written by the loading thread and read by whoever draws."""

    def __init__(self) -> None:
        self.newest = LoadProgress("starting")
        self.changed: Callable[[], None] = lambda: None

    def __call__(self, progress: LoadProgress) -> None:
        self.newest = progress
        self.changed()


def wait_with_bar(engine: Engine, state: LoadState) -> ModelInfo:
    """Wait until the model is loaded, drawing a bar if stderr is a terminal. Raises what loading raised."""
    if sys.stderr is None or not sys.stderr.isatty():
        return engine.info
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Amount(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(amount_text(state.newest), style="dim")

    columns = (TextColumn("{task.description}"), BarColumn(30), Amount(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(state.newest.stage, total=None)
        stage = state.newest.stage

        def draw() -> None:
            nonlocal stage
            now = state.newest
            if now.stage != stage:  # the time left is reckoned anew
                stage = now.stage
                bar.reset(task, description=stage, total=now.total or None)
            bar.update(task, completed=now.done, total=now.total or None)

        before, state.changed = state.changed, draw
        draw()
        try:
            return engine.info
        finally:
            state.changed = before


def amount_text(progress: LoadProgress) -> str:
    """`93.0 GB of 221 GB, shard 19 of 46`; "" where that is unknown."""
    if not progress.total:
        return ""
    shard = f", shard {progress.shard} of {progress.shards}" if progress.shards > 1 else ""
    return f"{size_text(progress.done)} of {size_text(progress.total)}{shard}"
