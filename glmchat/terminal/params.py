"""How answers are sampled, shown and changed by /params; names, bounds and texts are the settings' own."""

from __future__ import annotations

import re
from dataclasses import Field, replace
from typing import Any

from ..engine.base import GenerationOptions
from ..errors import UsageError
from ..kinds import SAMPLING
from ..settings import nearest, table

PARAMETERS: dict[str, Field[Any]] = {entry.name: entry for entry in table() if entry.name in SAMPLING}


def set_parameter(options: GenerationOptions, argument: str) -> GenerationOptions:
    """`top_p 0.9` or `top_p=0.9`; the value `default` takes a choice back. Raises UsageError."""
    name, _, value = re.sub(r"\s*=\s*|\s+", " ", argument.strip(), count=1).partition(" ")
    name = name.replace("-", "_")
    if name not in PARAMETERS:
        hint = nearest(name, PARAMETERS) or f"; there are {', '.join(PARAMETERS)}."
        raise UsageError(f"Unknown parameter {name}{hint}")
    entry = PARAMETERS[name]
    try:
        new: Any = entry.default if value == "default" else entry.metadata["kind"].read_text(value)
    except ValueError as e:
        raise UsageError(f"{name} {e}; or default.") from None
    return replace(options, **{name: new})


def describe_parameters(options: GenerationOptions) -> str:
    """A line for each: name, value, what it may be."""
    rows = [
        (name, _said(getattr(options, name)), entry.metadata["help"]) for name, entry in PARAMETERS.items()
    ]
    width = max(len(value) for _, value, _ in rows)
    return "\n".join(f"{name:<12} {value:<{width}}  {text}" for name, value, text in rows)


def _said(value: Any) -> str:
    if value is None:
        return "default"
    return str(value).lower() if isinstance(value, bool) else f"{value}"
