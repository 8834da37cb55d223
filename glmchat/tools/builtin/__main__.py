"""What a built-in tool runs as: `__main__.py NAME CONFIG`, the call's arguments as JSON on stdin.

The result goes to stdout. Why there is none goes to stderr, in one line, and the exit code is 1. CONFIG is a
JSON object with `roots`, `private` and `max_output`.
"""

from __future__ import annotations

import importlib
import json
import signal
import sys
import typing
from collections.abc import Iterable

_CONFIG: dict[str, typing.Any] = {"roots": [], "private": False, "max_output": 65536}

# Where each tool lives, and what of the configuration it is given.
_TOOLS = {
    "read_file": ("files", ("roots", "max_output")),
    "list_dir": ("files", ("roots",)),
    "search_files": ("search", ("roots",)),
    "write_file": ("files", ("roots",)),
    "current_time": ("clock", ()),
    "calculate": ("arithmetic", ()),
    "http_get": ("web", ("private",)),
}


def main(name: str, config: str) -> int:
    from glmchat.tools.argv import Refused

    # What is half done is taken back when the call is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        for part in _call(name, json.loads(config), json.load(sys.stdin.buffer)):
            _write(part)
    except Refused as e:
        _write(getattr(e, "body", ""))
        print(e, file=sys.stderr)
        return 1
    except (MemoryError, RecursionError):
        print(f"{name} ran out of memory; ask for less at a time", file=sys.stderr)
        return 1
    return 0


def _call(name: str, config: dict[str, typing.Any], arguments: dict[str, typing.Any]) -> Iterable[str]:
    from glmchat.tools.argv import Refused
    from glmchat.tools.builtin import declarations

    if name not in _TOOLS:
        raise Refused(f"there is no built-in tool {name!r}; there are {', '.join(_TOOLS)}")
    parameters = declarations()[name]["parameters"]
    wrong = arguments.keys() - parameters["properties"].keys()
    missing = set(parameters.get("required", ())) - arguments.keys()
    if wrong or missing:
        raise Refused(f"{name} takes {', '.join(parameters['properties'])}; give these and no others")
    module, wanted = _TOOLS[name]
    function = getattr(importlib.import_module(f"glmchat.tools.builtin.{module}"), name)
    result = function(**arguments, **{key: {**_CONFIG, **config}[key] for key in wanted})
    return [result] if isinstance(result, str) else result


def _write(text: str) -> None:
    # As UTF-8 whatever the locale; a file's name need not be valid text.
    sys.stdout.buffer.write(text.encode(errors="backslashreplace"))
    sys.stdout.buffer.flush()


def _find_glmchat() -> None:
    """Import the package beside this file, and leave nothing of its folder on the path.

    A tool can write there when it is a root, and a `json.py` in it must not be run. What `glmchat` itself
    imports is imported above.
    """
    sys.path.insert(0, __file__.rsplit("/", 4)[0] or "/")
    importlib.import_module("glmchat")
    del sys.path[0]


if __name__ == "__main__":
    _find_glmchat()
    sys.exit(main(*sys.argv[1:]))
