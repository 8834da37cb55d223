"""Reads tool declarations: a JSON file whose form `schema.json` gives, each fault told with its place.

A bare list of tools in OpenAI's form, or one tool, is read as well: such tools are shown to the model and
their calls to the person, but nothing is run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ..errors import UsageError

Approve: TypeAlias = Literal["ask", "always", "never"]

SCHEMA, STARTER = (Path(__file__).with_name(name) for name in ("schema.json", "starter.json"))
PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_-]*)\}")


@dataclass(frozen=True, slots=True)
class Run:
    """How the calls of a tool are run. Either `command` or `python` is given."""

    command: tuple[str, ...] = ()
    python: str = ""
    stdin_json: bool = False
    timeout_s: float = 30.0
    max_output: int = 65536
    """Bytes of each of stdout and stderr."""
    cwd: Path | None = None
    folder: Path | None = None
    """Where the declaration stands."""
    env: tuple[str, ...] = ()
    approve: Approve = "ask"


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool. `declaration` is what the model is told, in OpenAI's form, whole."""

    declaration: Mapping[str, Any]
    run: Run | None = None
    source: str = ""
    """The file that declares it, as the person gave it."""

    @property
    def name(self) -> str:
        return str(self._function["name"])

    @property
    def description(self) -> str:
        return str(self._function.get("description") or "")

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The JSON Schema of its arguments."""
        return self._function.get("parameters") or {}

    @property
    def _function(self) -> Mapping[str, Any]:
        inner: Mapping[str, Any] = self.declaration.get("function", self.declaration)
        return inner


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong in a declaration, where, and what to do."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}" if self.place else self.text


def load_tools(path: str) -> tuple[Tool, ...]:
    """The tools of a file. Raises UsageError with its first fault, and how many more there are."""
    tools, faults = check_file(path)
    if faults:
        more = f" ({len(faults) - 1} more; glmchat tools check {path} lists all)" if len(faults) > 1 else ""
        raise UsageError(f"{path}: {faults[0]}{more}")
    return tools


def check_file(path: str) -> tuple[tuple[Tool, ...], tuple[Fault, ...]]:
    """The tools of a file and all that is wrong with it. Raises UsageError when it cannot be read at all."""
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as e:
        raise UsageError(f"{path} cannot be read: {e.strerror or e}.") from None
    except UnicodeDecodeError as e:
        raise UsageError(f"{path} is not UTF-8 at byte {e.start}; save it as UTF-8.") from None
    try:
        value = json.loads(text, object_pairs_hook=_no_key_twice)
    except json.JSONDecodeError as e:
        return (), (Fault(f"line {e.lineno}, column {e.colno}", f"this is not JSON: {e.msg}."),)
    except _Twice as e:
        return (), (Fault("", f"the key {e.args[0]!r} stands twice in one object; one of them is lost."),)
    if not (isinstance(value, dict) and "tools" in value):
        value = {"tools": value if isinstance(value, list) else [value]}
    value = {**value, "tools": _whole(value["tools"])}
    if faults := _schema_faults(value):
        return (), tuple(faults)
    tools = [_read_tool(entry, file.absolute().parent, path) for entry in value["tools"]]
    return tuple(tools), tuple(_tool_faults(tools))


class _Twice(ValueError):
    pass


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise _Twice(key)
        out[key] = value
    return out


def _whole(tools: Any) -> Any:
    """OpenAI's older form, the inner part alone, is put into the whole."""
    if not isinstance(tools, list):
        return tools
    return [
        {"type": "function", "function": tool} if isinstance(tool, dict) and "name" in tool else tool
        for tool in tools
    ]


@cache
def _schema() -> Any:
    return json.loads(SCHEMA.read_text(encoding="utf-8"))


def _schema_faults(value: Any) -> list[Fault]:
    from jsonschema import Draft202012Validator

    errors = Draft202012Validator(_schema()).iter_errors(value)
    return [_explained(error) for error in sorted(errors, key=lambda e: [str(p) for p in e.absolute_path])]


def _explained(error: Any) -> Fault:
    """A fault of the schema in a person's words."""
    place = _place(error.absolute_path)
    wants = error.schema.get("description", "") if isinstance(error.schema, dict) else ""
    if error.validator == "additionalProperties":
        known = ", ".join(error.schema["properties"])
        extra = ", ".join(repr(k) for k in error.instance if k not in error.schema["properties"])
        return Fault(place, f"{extra} is not known here; known are {known}.")
    if error.validator == "required":
        missing = next(k for k in error.validator_value if k not in error.instance)
        return Fault(place, f"{missing!r} is missing.")
    if error.validator == "oneOf":
        return Fault(place, 'exactly one of "command" and "python" says what to run.')
    return Fault(place, f"{error.message}. {wants}".strip())


def _place(path: Iterable[Any]) -> str:
    out = ""
    for part in path:
        out += f"[{part}]" if isinstance(part, int) else f"{'.' * bool(out)}{part}"
    return out


def _read_tool(entry: dict[str, Any], folder: Path, source: str) -> Tool:
    return Tool(
        {"type": "function", "function": entry["function"]}, _read_run(entry.get("run"), folder), source
    )


def _tool_faults(tools: Sequence[Tool]) -> Iterator[Fault]:
    """What the schema of declarations cannot tell."""
    names: set[str] = set()
    for number, tool in enumerate(tools):
        place = f"tools[{number}]"
        if tool.name in names:
            yield Fault(f"{place}.function.name", f"{tool.name!r} is declared twice.")
        names.add(tool.name)
        yield from _parameter_faults(tool, f"{place}.function.parameters")
        if tool.run is not None:
            yield from _run_faults(tool, tool.run, f"{place}.run")


def _read_run(run: dict[str, Any] | None, folder: Path) -> Run | None:
    if run is None:
        return None
    return Run(
        command=tuple(run.get("command", ())),
        python=run.get("python", ""),
        stdin_json="stdin" in run,
        timeout_s=float(run.get("timeout", 30.0)),
        max_output=run.get("max_output", 65536),
        cwd=folder / Path(run["cwd"]).expanduser() if "cwd" in run else None,
        folder=folder,
        env=tuple(run.get("env", ())),
        approve=run.get("approve", "ask"),
    )


def _parameter_faults(tool: Tool, place: str) -> list[Fault]:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(dict(tool.parameters))
    except SchemaError as e:
        return [
            Fault(".".join(filter(None, (place, _place(e.absolute_path)))), f"no JSON Schema: {e.message}.")
        ]
    if tool.parameters.get("type", "object") != "object":
        return [Fault(f"{place}.type", 'arguments are always an object; write "type": "object".')]
    return []


def _run_faults(tool: Tool, run: Run, place: str) -> list[Fault]:
    faults = []
    known = tool.parameters.get("properties") or {}
    for number, word in enumerate(run.command):
        here = f"{place}.command[{number}]"
        if match := PLACEHOLDER.fullmatch(word):
            if match[1] not in known:
                names = ", ".join(known) or "none"
                faults.append(Fault(here, f"there is no parameter {match[1]!r}; there are {names}."))
            if number == 0:
                faults.append(Fault(here, "the program to run cannot be an argument of the model's."))
        elif match := next((m for m in PLACEHOLDER.finditer(word) if m[1] in known), None):
            faults.append(Fault(here, f"{match[0]} must stand as a word of its own."))
    if run.cwd is not None and not run.cwd.is_dir():
        faults.append(Fault(f"{place}.cwd", f"there is no folder {run.cwd}."))
    return faults
