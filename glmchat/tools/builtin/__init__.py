"""The tools that come with glmchat: what a model is told, and what is refused before anybody is asked.

Each call runs in a process of its own, as `__main__.py NAME CONFIG`, with its arguments as JSON on stdin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


@cache
def declarations() -> dict[str, dict[str, Any]]:
    """What a model is told of each, by its name: the `function` object of OpenAI's form."""
    import json
    from pathlib import Path

    text = Path(__file__).with_name("declarations.json").read_text(encoding="utf-8")
    return {function["name"]: function for function in json.loads(text)}


def check(name: str, arguments: Mapping[str, Any], roots: Sequence[Path]) -> None:
    """Raise Refused for what the call would refuse anyway. Cheap: no file is opened, no name looked up."""
    if name in ("read_file", "list_dir", "search_files", "write_file"):
        from .place import confined

        confined(arguments.get("path", "."), roots)
    elif name == "http_get":
        from .url import target

        target(arguments.get("url"))
    elif name == "run_command":
        from .command import words

        words(arguments.get("command"))
