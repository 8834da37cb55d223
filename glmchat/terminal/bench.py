"""`glmchat bench`: how fast the model is on this machine, as a table or as JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Table

from ..engine.local import LocalEngine
from ..engine.measure import Measured, choose_lengths, measure
from ..engine.native import was_not_compiled
from ..errors import EXIT_OK
from ..glm.checkpoints import resolve
from ..settings import Settings
from . import jsonl, start
from .progress import LoadState, wait_with_bar
from .sanitize import sanitize
from .wording import count, scaled_text, size_text, speed_text

WIDTH = 80
UNCOMPILED = "The kernels in C are missing: get gcc, and then install glmchat anew."
OFFLOADED = "Some weights are moved between devices for each token, so no one memory sets the limit."


def run(settings: Settings, lengths: Sequence[int], repeats: int, *, as_json: bool) -> int:
    """Measure and print; returns the exit code. Raises what loading and measuring raise."""
    model = settings.model or start.DEMO
    if lengths:  # before anything large is downloaded or loaded
        found = {name: getattr(settings, name) for name in ("revision", "token", "offline")}
        choose_lengths(lengths, model, resolve(model, **found).context_length)
    load = LoadState()
    options = start.load_options(settings)
    with LocalEngine(model, options, chat_template=settings.chat_template, on_progress=load) as engine:
        wait_with_bar(engine, load)
        with _progress_line() as on_step:
            measured = measure(engine, lengths, repeats=repeats, on_step=on_step)
    if as_json:
        jsonl.write(json_object(measured))
    else:
        _print(measured, _Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False))
    return EXIT_OK


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich would end the program, with an exit code of its own."""
        raise  # the BrokenPipeError, on which this is called


@contextmanager
def _progress_line() -> Iterator[Callable[[str], None]]:
    """What tells a person at a terminal what is being measured; on stderr, and gone at the end."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda _: None
        return
    # Drawn only between two measurements, by nothing that runs beside them.
    with Progress(
        TextColumn("{task.description}"), console=Console(stderr=True), transient=True, auto_refresh=False
    ) as line:
        task = line.add_task("")

        def show(text: str) -> None:
            line.update(task, description=f"measuring: {text} …", refresh=True)

        yield show


def json_object(measured: Measured) -> dict[str, Any]:
    """All that was measured, for programs; every field is always there."""
    info = measured.info
    values = asdict(measured)
    return {
        "model": info.name,
        "device": info.device,
        "dtype": info.dtype,
        "threads": measured.threads,
        "attention": measured.attention,
        "parameters": info.parameters,
        "context_length": info.context_length,
        "load_s": info.load_s,
        "weights_bytes": measured.weights_bytes,
        "active_bytes": measured.active_bytes,
        "bandwidth_bytes_per_s": measured.bandwidth,
        "peak_memory_bytes": measured.peak_memory,
        "lengths": values["lengths"],
        "guessing": values["guessing"],
    }


def _print(measured: Measured, console: Console) -> None:
    info = measured.info
    on_cpu = "cpu" in info.device
    active = size_text(measured.active_bytes)
    for name, *parts in (
        ("model", info.name),
        ("device", info.device, count(measured.threads, "CPU thread") if on_cpu else "", info.dtype),
        ("attention", measured.attention),
        ("parameters", parameters_text(info.parameters), f"loaded in {info.load_s:.1f} s"),
        ("weights", size_text(measured.weights_bytes), f"{active} of them read for a token"),
        ("bandwidth", *(f"{d} {size_text(int(speed))}/s" for d, speed in measured.bandwidth.items())),
        ("peak memory", *(f"{d} {size_text(size)}" for d, size in measured.peak_memory.items())),
    ):
        print(sanitize(f"{name:<11}  {' · '.join(filter(None, parts)) or '—'}"))
    print()

    table = Table()
    for heading in ("context", "prefill, tokens/s", "TTFT, s", "decode, tokens/s", "limit", "reached"):
        table.add_column(heading, justify="right")
    for of_length in measured.lengths:
        limit, share = of_length.limit_tokens_per_s, of_length.limit_share
        table.add_row(
            f"{of_length.context_tokens:,}",
            speed_text(of_length.prefill_tokens_per_s),
            f"{of_length.ttft_s:.3g}",
            speed_text(of_length.decode_tokens_per_s),
            "—" if limit is None else speed_text(limit),
            "—" if share is None else f"{share:.0%}",
        )
    console.print(table)
    if on_cpu and was_not_compiled():
        print(UNCOMPILED)
    if not measured.bandwidth:
        print(OFFLOADED)
    if measured.guessing is not None:
        speed, each = measured.guessing.decode_tokens_per_s, measured.guessing.tokens_per_forward
        print(f"With guesses ahead: {speed_text(speed)} tokens/s, {each:.2f} tokens a forward.")


def parameters_text(number: int) -> str:
    """5.9M, 107B."""
    return scaled_text(number, ("", "k", "M", "B", "T"))
