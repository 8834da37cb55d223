"""Whether a call's arguments are what its tool declares, told in words that the model can act on."""

from __future__ import annotations

from typing import Any

from .declare import Tool

_MOST, _LONGEST = 5, 300


def argument_faults(tool: Tool, arguments: dict[str, Any]) -> str:
    """What the JSON Schema of the tool says against `arguments`; "" where nothing."""
    from jsonschema import Draft202012Validator
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    # With a registry of its own, nothing that a schema refers to is fetched from the network.
    validator = Draft202012Validator(dict(tool.parameters), registry=Registry())
    try:
        errors = list(validator.iter_errors(arguments))
    except Unresolvable as e:
        return f"the tool's own schema refers to {e.ref}, which is not there"
    lines = []
    for error in errors[:_MOST]:
        place = ".".join(str(part) for part in error.absolute_path)
        said = error.message if len(error.message) <= _LONGEST else f"{error.message[:_LONGEST]} …"
        lines.append(f"{place}: {said}" if place else said)
    if len(errors) > _MOST:
        lines.append(f"and {len(errors) - _MOST} more")
    return "; ".join(lines)
