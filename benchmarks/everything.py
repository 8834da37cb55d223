"""All the others, and the machine, as Markdown: a section of benchmarks/RESULTS.md."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

COMMANDS = (
    "peers",
    "decode --repeats 5",
    "terminal",
    "startup",
    "reuse --repeats 3",
    "typed --repeats 3",
    "cancel",
    "speculate",
    "speculate --by lookup",
    "load",
    "memory",
    "render",
    "busy",
    "gpu",
    "hybrid",
)
LIBRARIES = ("torch", "transformers", "accelerate", "tokenizers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("commands", nargs="*", default=COMMANDS, help="only these (default: all)")


def run(args: argparse.Namespace) -> None:
    """Run them and print what they print, as Markdown."""
    print("# What was measured\n")
    print("Ratios of one run on one machine; the numbers beside them are of this machine and this moment.\n")
    print(f"- {date.today()}, {_processor()}, {os.cpu_count()} logical cores, {_memory()}")
    print(f"- Python {platform.python_version()}, {', '.join(f'{n} {version(n)}' for n in LIBRARIES)}")
    for command in args.commands:
        print(f"\n## python -m benchmarks {command}\n\n```", flush=True)
        words = [sys.executable, "-m", "benchmarks", *command.split()]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        print(done.stdout.rstrip() or f"failed: {done.stderr.strip().splitlines()[-1]}")
        print("```", flush=True)


def _processor() -> str:
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.exists() else []
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown CPU"
    )


def _memory() -> str:
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
