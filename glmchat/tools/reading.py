"""Reads tool declarations: a JSON file whose form `schema.json` gives, each fault told with its place.

A bare list of tools in OpenAI's form, or one tool, is read as well: such tools are shown to the model and
their calls to the person, but nothing is run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import UsageError
from . import builtin, sandbox
from .declare import MAX_OUTPUT, PLACEHOLDER, TIMEOUT_S, Declarations, Run, Server, Tool

SCHEMA, STARTER = (Path(__file__).with_name(name) for name in ("schema.json", "starter.json"))

LONGEST = 10_000_000
"""Characters of a file; no context holds as many."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_ONE_OF = {
    "run": 'exactly one of "command", "python" and "builtin" says what to run.',
    "mcpServers": 'a server has either a "command" or a "url".',
}


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong in a declaration, where, and what to do."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}" if self.place else self.text


def read_declarations(path: str, text: str | None = None) -> Declarations:
    """What a file declares. Raises UsageError with its first fault, and how many more there are."""
    declared, faults = check_declarations(path, text)
    if faults:
        more = f" ({len(faults) - 1} more; glmchat tools check {path} lists all)" if len(faults) > 1 else ""
        raise UsageError(f"{path}: {faults[0]}{more}")
    return declared


def check_declarations(path: str, text: str | None = None) -> tuple[Declarations, tuple[Fault, ...]]:
    """What a file declares and all that is wrong with it; `text` is what it holds, where that is known.

    Raises UsageError when it cannot be read at all.
    """
    text = read_text(path) if text is None else text
    try:
        value = json.loads(text, object_pairs_hook=_no_key_twice)
    except json.JSONDecodeError as e:
        return Declarations(), (Fault(f"line {e.lineno}, column {e.colno}", f"this is not JSON: {e.msg}."),)
    except _Twice as e:
        return Declarations(), (
            Fault("", f"the key {e.args[0]!r} stands twice in one object; one of them is lost."),
        )
    except RecursionError:
        return Declarations(), (Fault("", "this is nested too deeply to be a declaration."),)
    except ValueError:  # which Python would take long for
        return Declarations(), (Fault("", "a number in it has more digits than can be read."),)
    if not (isinstance(value, dict) and value.keys() & {"tools", "mcpServers"}):
        value = {"tools": value if isinstance(value, list) else [value]}
    if "tools" in value:
        value = {**value, "tools": _whole(value["tools"])}
    if faults := _schema_faults(value):
        return Declarations(), tuple(faults)
    folder = Path(os.path.expanduser(path)).absolute().parent
    tools = tuple(_read_tool(entry, folder, path) for entry in value.get("tools", ()))
    servers, faults = [], []
    for name, entry in value.get("mcpServers", {}).items():
        if entry.get("disabled"):
            continue
        try:
            servers.append(_read_server(name, entry, folder, path))
        except _Unset as e:
            faults.append(Fault(f"mcpServers.{name}", f"the environment variable {e.args[0]} is not set."))
    faults += [*_tool_faults(tools), *_server_faults(servers)]
    return Declarations(tools, tuple(servers)), tuple(faults)


def read_text(path: str) -> str:
    """The text of a file that settings name, or a project brings. Raises UsageError."""
    try:
        with Path(os.path.expanduser(path)).open(encoding="utf-8-sig") as file:
            text = file.read(LONGEST + 1)  # and no more: it may have no end
        if len(text) > LONGEST:
            raise UsageError(f"{path} is longer than {LONGEST:,} characters; name another, or a part of it.")
        return text
    except OSError as e:
        raise UsageError(f"{path} cannot be read: {e.strerror or e}.") from None
    except UnicodeDecodeError as e:
        raise UsageError(f"{path} is not UTF-8 at byte {e.start}; save it as UTF-8.") from None
    except ValueError:
        raise UsageError(f"{path!r} can be no file's name.") from None


class _Twice(ValueError):
    pass


class _Unset(ValueError):
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
    path = list(error.absolute_path)
    place = _place(path)
    wants = error.schema.get("description", "") if isinstance(error.schema, dict) else ""
    if error.validator == "additionalProperties":
        known = ", ".join(error.schema["properties"])
        extra = ", ".join(repr(k) for k in error.instance if k not in error.schema["properties"])
        return Fault(place, f"{extra} is not known here; known are {known}.")
    if error.validator == "required":
        missing = next(k for k in error.validator_value if k not in error.instance)
        return Fault(place, f"{missing!r} is missing.")
    if error.validator == "anyOf":
        return Fault(place, "'function' is missing; only a built-in tool brings its own.")
    if error.validator == "oneOf":
        return Fault(place, next(text for key, text in _ONE_OF.items() if key in path))
    return Fault(place, f"{error.message}. {wants}".strip())


def _place(path: Iterable[Any]) -> str:
    out = ""
    for part in path:
        out += f"[{part}]" if isinstance(part, int) else f"{'.' * bool(out)}{part}"
    return out


def _read_tool(entry: dict[str, Any], folder: Path, source: str) -> Tool:
    run = _read_run(entry.get("run"), folder)
    function = entry.get("function", {})
    if run is not None and run.builtin:
        function = {**builtin.declarations()[run.builtin], **function}
    return Tool({"type": "function", "function": function}, run, source)


def _read_run(run: dict[str, Any] | None, folder: Path) -> Run | None:
    if run is None:
        return None
    return Run(
        command=tuple(run.get("command", ())),
        python=run.get("python", ""),
        builtin=run.get("builtin", ""),
        stdin_json="stdin" in run,
        timeout_s=float(run.get("timeout", TIMEOUT_S)),
        max_output=run.get("max_output", MAX_OUTPUT),
        cwd=_from(folder, run["cwd"]) if "cwd" in run else None,
        folder=folder,
        env=tuple(run.get("env", ())),
        roots=tuple(_from(folder, root) for root in run.get("roots", ())),
        private=run.get("private", False),
        sandbox=run.get("sandbox", False),
        approve=run.get("approve", "ask"),
    )


def _from(folder: Path, path: str) -> Path:
    return folder / os.path.expanduser(path)


def _read_server(name: str, entry: dict[str, Any], folder: Path, source: str) -> Server:
    """Raises _Unset."""
    return Server(
        name=name,
        command=tuple(_filled(word) for word in (entry["command"], *entry.get("args", ())))
        if "command" in entry
        else (),
        url=_filled(entry.get("url", "")),
        env={key: _filled(value) for key, value in entry.get("env", {}).items()},
        headers={key: _filled(value) for key, value in entry.get("headers", {}).items()},
        cwd=_from(folder, _filled(entry["cwd"])) if "cwd" in entry else None,
        timeout_s=float(entry.get("timeout", TIMEOUT_S)),
        approve=entry.get("approve", "ask"),
        source=source,
    )


def _filled(text: str) -> str:
    """With `${NAME}` and `${NAME:-default}` replaced, so that no file has to hold a token. Raises _Unset."""

    def value(match: re.Match[str]) -> str:
        name, default = match.groups()
        if (found := os.environ.get(name) or default) is None:
            raise _Unset(name)
        return found

    return _VARIABLE.sub(value, text)


def _tool_faults(tools: Sequence[Tool]) -> Iterator[Fault]:
    """What the schema of declarations cannot tell."""
    names: set[str] = set()
    for number, tool in enumerate(tools):
        place = f"tools[{number}]"
        if tool.name in names:
            yield Fault(f"{place}.function.name", f"{tool.name!r} is declared twice.")
        names.add(tool.name)
        faults = _parameter_faults(tool, f"{place}.function.parameters")
        yield from faults
        if isinstance(tool.run, Run) and not faults:  # which is looked up in the parameters
            yield from _run_faults(tool, tool.run, f"{place}.run")


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


def _run_faults(tool: Tool, run: Run, place: str) -> Iterator[Fault]:
    known = tool.parameters.get("properties") or {}
    for number, word in enumerate(run.command):
        here = f"{place}.command[{number}]"
        if match := PLACEHOLDER.fullmatch(word):
            if match[1] not in known:
                names = ", ".join(known) or "none"
                yield Fault(here, f"there is no parameter {match[1]!r}; there are {names}.")
            if number == 0:
                yield Fault(here, "the program to run cannot be an argument of the model's.")
        elif match := next((m for m in PLACEHOLDER.finditer(word) if m[1] in known), None):
            yield Fault(here, f"{match[0]} must stand as a word of its own.")
    if run.cwd is not None and not run.cwd.is_dir():
        yield Fault(f"{place}.cwd", f"there is no folder {run.cwd}.")
    for number, root in enumerate(run.roots):
        if not root.is_dir():
            yield Fault(f"{place}.roots[{number}]", f"there is no folder {root}.")
    if run.builtin and tool.parameters != builtin.declarations()[run.builtin]["parameters"]:
        yield Fault(place, f"the parameters of the built-in {run.builtin} are given; leave them out.")
    if run.sandbox and (missing := sandbox.missing()):
        yield Fault(f"{place}.sandbox", missing)


def _server_faults(servers: Sequence[Server]) -> Iterator[Fault]:
    for server in servers:
        if server.cwd is not None and not server.cwd.is_dir():
            yield Fault(f"mcpServers.{server.name}.cwd", f"there is no folder {server.cwd}.")


def clashes(declared: Mapping[str, Declarations]) -> str:
    """A name that two files declare, told; "" where there is none."""
    seen: dict[str, str] = {}
    for path, declarations in declared.items():
        for name in (t.name for t in declarations.tools):
            if name in seen:
                return f"{name} is declared in {seen[name]} and in {path}; rename one of them."
            seen[name] = path
    return ""
