"""Argument values of tool calls: the model writes text, the tool's JSON Schema says what it means.

Strings stand raw in the markup and everything else as JSON, so `42` may be a number or a string; only the
schema can tell.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]
_MISSING = object()


class ArgumentTypes:
    """Turns raw argument text into typed values by the declarations of the tools."""

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None = None) -> None:
        """`tools`: OpenAI declarations, or their inner `{name, parameters}` alone."""
        functions = [t.get("function", t) for t in tools or ()]
        self._schemas: dict[Any, Schema] = {f.get("name"): _mapping(f.get("parameters")) for f in functions}

    def value(self, tool: str, parameter: str, raw: str) -> Any:
        """`raw` as the type that the schema gives the parameter; without one, as JSON where it is JSON.

        Text that does not fit its type stays a string: what is wrong with it is for validation to say.
        """
        root = self._schemas.get(tool, {})
        schema = _mapping(root.get("properties")).get(parameter)
        types = set(_types(_mapping(schema), root))
        parsed = _parse(raw)
        if parsed is _MISSING or types == {"string"}:
            return raw
        if "string" in types or isinstance(parsed, str):
            return parsed if _type(parsed) in types - {"string"} else raw
        if types == {"integer"} and isinstance(parsed, float) and parsed.is_integer():
            return int(parsed)
        return parsed


def _types(schema: Schema, root: Schema, depth: int = 8) -> Iterator[str]:
    """The JSON types that a schema allows; none: it does not say."""
    declared = schema.get("type")
    if isinstance(declared, str):
        declared = [declared]
    if isinstance(declared, list):
        for name in declared:
            yield from ("integer", "number") if name == "number" else (str(name),)
        return
    if "const" in schema:
        yield _type(schema["const"])
    if isinstance(values := schema.get("enum"), list):
        yield from map(_type, values)
    if depth == 0:
        return
    if isinstance(ref := schema.get("$ref"), str):
        yield from _types(_resolve(ref, root), root, depth - 1)
    for keyword in ("anyOf", "oneOf", "allOf"):
        if isinstance(options := schema.get(keyword), list):
            for option in options:
                yield from _types(_mapping(option), root, depth - 1)


def _resolve(ref: str, root: Schema) -> Schema:
    """What a local reference such as `#/$defs/Unit` points to."""
    found: Any = root
    for step in ref.removeprefix("#").strip("/").split("/"):
        found = _mapping(found).get(step)
    return _mapping(found)


def _type(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    for kind, name in ((str, "string"), (int, "integer"), (float, "number"), (list, "array")):
        if isinstance(value, kind):
            return name
    return "object"


def _parse(raw: str) -> Any:
    """The JSON value that `raw` is, strictly; `_MISSING` where it is none."""
    try:
        value = json.loads(raw, parse_constant=_refuse, parse_float=_finite)
        if "\\u" in raw:
            json.dumps(value, ensure_ascii=False).encode()  # an escaped lone surrogate is no text
    except (ValueError, RecursionError):
        return _MISSING
    return value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    return value if abs(value) != float("inf") else _refuse(digits)


def _mapping(value: Any) -> Schema:
    return value if isinstance(value, Mapping) else {}
