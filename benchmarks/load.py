"""Load: from the first weight to the first token, against transformers' from_pretrained and a forward.

What both import takes as long and is left out. The checkpoint's files are in the system's cache, from where
from_pretrained takes plain weights only when they are multiplied with; we pack all of them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from .checkpoint import AIR_LAYERS, SHAPE, write_random_checkpoint
from .report import Comparison, measure_pairs, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", action="append", help="checkpoint to load; default: demo, a random 270M, Air's layers"
    )
    parser.add_argument("--repeats", type=int, default=3, help="loads of each checkpoint (%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Measure and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        models = args.model or [
            "demo",
            *(
                str(write_random_checkpoint(Path(folder) / name, shape))
                for name, shape in (("random-270M", SHAPE), ("Air's layers", AIR_LAYERS))
            ),
        ]
        comparisons = []
        for model in models:
            _seconds(model, "bare")  # which also brings its files into the cache
            ours, theirs = measure_pairs(
                lambda model=model: _seconds(model, "glmchat"),  # type: ignore[misc]
                lambda model=model: _seconds(model, "bare"),  # type: ignore[misc]
                args.repeats,
            )
            comparisons.append(
                Comparison(
                    f"{Path(model).name}: load ÷ from_pretrained", ours, theirs, 1.0, more_is_better=False
                )
            )
    show("From the first weight to the first token, seconds", comparisons)


def _seconds(model: str, side: str) -> float:
    """What first_token.py tells."""
    command = [sys.executable, "-m", "benchmarks.first_token", model, side]
    root = Path(__file__).parent.parent
    return float(subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout)
