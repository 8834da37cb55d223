"""The recorded behaviour in tests/data, a list of cases a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent / "data"


def load(name: str) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line; lines end at "\\n" alone, for some strings hold U+2028."""
    text = (_FOLDER / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]
