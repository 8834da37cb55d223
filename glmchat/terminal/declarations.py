"""`glmchat tools check FILE …` and `glmchat tools init [FILE]`: tool declarations without a chat."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

from ..errors import EXIT_OK, EXIT_USAGE, UsageError
from ..settings import nearest
from ..tools.reading import SCHEMA, STARTER, check_declarations
from .sanitize import sanitize

_USAGE = "Use glmchat tools check FILE …, or glmchat tools init [FILE]."


def run(words: list[str]) -> int:
    """Do what the words behind `glmchat tools` say; returns the exit code. Raises UsageError."""
    if {"-h", "--help"} & set(words):
        print(_USAGE)
        return EXIT_OK
    match words:
        case ["check", _, *_]:
            return max(_check(path) for path in words[1:])
        case ["init"]:
            return _init("tools.json")
        case ["init", path] if not path.startswith("-"):
            return _init(path)
        case [name, *_] if name not in ("check", "init"):
            hint = nearest(name, ["check", "init"]) or "."
            raise UsageError(f"There is no glmchat tools {name}{hint} {_USAGE}")
        case _:
            raise UsageError(_USAGE)


def _check(path: str) -> int:
    """One line a fault, or one that says what the file declares."""
    declared, faults = check_declarations(path)
    for fault in faults:
        print(sanitize(f"{path}: {fault}"))
    if not faults:
        names = [tool.name if tool.run else f"{tool.name} (shown only)" for tool in declared.tools]
        names += [f"{server.name} (MCP server)" for server in declared.servers]
        print(sanitize(f"{path}: {', '.join(names) or 'no tools'}"))
    return EXIT_USAGE if faults else EXIT_OK


def _init(path: str) -> int:
    """Write a starting set, commented, that editors can complete by its schema."""
    starter = json.loads(STARTER.read_text(encoding="utf-8"))
    starter["$schema"] = SCHEMA.as_uri()
    to = Path(os.path.expanduser(path))
    try:
        with to.open("x", encoding="utf-8") as file:
            try:
                file.write(json.dumps(starter, indent=2, ensure_ascii=False) + "\n")
                file.flush()
            except OSError:
                to.unlink()  # a part of it would be in the way the next time
                raise
    except FileExistsError:
        raise UsageError(f"{path} is there already; give another name, or move it away.") from None
    except OSError as e:
        raise UsageError(f"{path} cannot be written: {e.strerror or e}.") from None
    with contextlib.suppress(OSError):  # nobody can be told then
        print(f"{path} is written. Try it: glmchat --tools {path}", file=sys.stderr)
    return EXIT_OK
