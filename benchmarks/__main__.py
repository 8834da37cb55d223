"""`python -m benchmarks NAME`: measure glmchat against plain Python and its peers.

Each comparison runs the two sides in turn, so that a busy machine slows both, and reports medians.
"""

from __future__ import annotations

import argparse
import os

from . import (
    busy,
    cancel,
    decode,
    everything,
    gpu,
    hybrid,
    load,
    memory,
    peers,
    render,
    reuse,
    speculate,
    startup,
    terminal,
    typed,
)

MODULES = (
    decode,
    peers,
    speculate,
    reuse,
    typed,
    startup,
    load,
    memory,
    render,
    terminal,
    cancel,
    busy,
    gpu,
    hybrid,
    everything,
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    modules = {module.__name__.rpartition(".")[2]: module for module in MODULES}
    commands = parser.add_subparsers(required=True, metavar="|".join(modules))
    for name, module in modules.items():
        command = commands.add_parser(name, help=module.__doc__.splitlines()[0], description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # the tables are all there is to read
    args.run(args)


main()
