"""Whether a call's arguments are what its tool declares, told in words that the model can act on."""

from __future__ import annotations

import functools
from typing import Any

from .declare import Remote, Tool

_MOST, _LONGEST = 5, 300


def argument_faults(tool: Tool, arguments: dict[str, Any]) -> str:
    """What the JSON Schema of the tool says against `arguments`; "" where nothing.

    Of a server's schema its regular expressions are left to the server: they may be none of Python's, or keep
    it busy for ever.
    """
    from jsonschema import Draft202012Validator
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    validator: Any = _without_patterns() if isinstance(tool.run, Remote) else Draft202012Validator
    try:
        # With a registry of its own, nothing that a schema refers to is fetched from the network.
        errors = list(validator(dict(tool.parameters), registry=Registry()).iter_errors(arguments))
    except Unresolvable as e:
        return f"the tool's own schema refers to {e.ref}, which is not there"
    except Exception as e:  # a server may send any, which nobody has checked
        return f"the tool's own schema cannot be used ({type(e).__name__}: {str(e)[:_LONGEST]})"
    lines = []
    for error in errors[:_MOST]:
        place = ".".join(str(part) for part in error.absolute_path)
        said = error.message if len(error.message) <= _LONGEST else f"{error.message[:_LONGEST]} …"
        lines.append(f"{place}: {said}" if place else said)
    if len(errors) > _MOST:
        lines.append(f"and {len(errors) - _MOST} more")
    return "; ".join(lines)


@functools.cache
def _without_patterns() -> Any:
    """A validator that matches no regular expression."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    usual = Draft202012Validator.VALIDATORS

    def passes(*_: Any) -> tuple[()]:
        return ()

    def unless_by_pattern(keyword: str) -> Any:
        def check(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
            return () if "patternProperties" in schema else usual[keyword](validator, value, instance, schema)

        return check

    rest = ("additionalProperties", "unevaluatedProperties")  # what no pattern names
    changed = {"pattern": passes, "patternProperties": passes, **{k: unless_by_pattern(k) for k in rest}}
    return extend(Draft202012Validator, changed)  # type: ignore[no-untyped-call]
