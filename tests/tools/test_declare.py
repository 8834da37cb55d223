"""Declarations: what is read, and each fault with its place and remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glmchat.errors import UsageError
from glmchat.tools.check import argument_faults
from glmchat.tools.declare import Run, Server, Tool
from glmchat.tools.reading import check_declarations, read_declarations

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def declared(run: Any = None, name: str = "look", parameters: Any = CITY, **more: Any) -> dict[str, Any]:
    tool: dict[str, Any] = {"type": "function", "function": {"name": name, "parameters": parameters, **more}}
    return tool if run is None else {**tool, "run": run}


def written(tmp_path: Path, value: Any) -> str:
    path = tmp_path / "tools.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)


def test_a_command_with_all_its_options(tmp_path: Path) -> None:
    run = {
        "command": ["look", "--city", "{city}"],
        "stdin": "json",
        "timeout": 3,
        "max_output": 500,
        "cwd": ".",
        "env": ["EDITOR"],
        "approve": "never",
    }
    path = written(tmp_path, {"$schema": "x", "tools": [declared(run)]})
    (tool,) = read_declarations(path).tools
    assert tool == Tool(
        declared(),
        Run(
            command=("look", "--city", "{city}"),
            stdin_json=True,
            timeout_s=3.0,
            max_output=500,
            cwd=tmp_path,
            folder=tmp_path,
            env=("EDITOR",),
            approve="never",
        ),
        path,
    )
    assert (tool.name, tool.description, tool.parameters) == ("look", "", CITY)


@pytest.mark.parametrize(
    "value",
    [[declared()], declared(), declared()["function"], [declared()["function"]], {"tools": [declared()]}],
)
def test_openais_forms_are_read_and_run_nothing(tmp_path: Path, value: Any) -> None:
    (tool,) = read_declarations(written(tmp_path, value)).tools
    assert tool.declaration == declared()
    assert tool.run is None


@pytest.mark.parametrize(
    ("value", "place", "says"),
    [
        ("{", "line 1, column 2", "not JSON"),
        ('{"tools": [}', "line 1, column 12", "not JSON"),
        ('{"tools": [], "tools": []}', "", "stands twice"),
        ({"tools": 5}, "tools", "array"),
        ({"tools": [5]}, "tools[0]", "object"),
        ({"tools": [declared()], "tool": 1}, "", "'tool' is not known here"),
        ({"tools": [{"type": "function"}]}, "tools[0]", "'function' is missing"),
        ({"tools": [{**declared(), "type": "tool"}]}, "tools[0].type", "function"),
        ({"tools": [declared(name="get weather")]}, "tools[0].function.name", "Letters, digits"),
        ({"tools": [declared(name="")]}, "tools[0].function.name", "Letters, digits"),
        ({"tools": [declared(), declared()]}, "tools[1].function.name", "declared twice"),
        ({"tools": [declared(parameters=[])]}, "tools[0].function.parameters", "object"),
        (
            {"tools": [declared(parameters={"type": "strin"})]},
            "tools[0].function.parameters.type",
            "no JSON Schema",
        ),
        ({"tools": [declared(parameters={"type": "string"})]}, "tools[0].function.parameters.type", "object"),
        ({"tools": [declared({})]}, "tools[0].run", "exactly one"),
        ({"tools": [declared({"command": ["a"], "python": "a:b"})]}, "tools[0].run", "exactly one"),
        ({"tools": [declared({"command": "rm -rf /"})]}, "tools[0].run.command", "argument vector"),
        ({"tools": [declared({"command": []})]}, "tools[0].run.command", "argument vector"),
        ({"tools": [declared({"command": ["look", "{town}"]})]}, "tools[0].run.command[1]", "there are city"),
        (
            {"tools": [declared({"command": ["look", "a={city}"]})]},
            "tools[0].run.command[1]",
            "word of its own",
        ),
        ({"tools": [declared({"command": ["{city}"]})]}, "tools[0].run.command[0]", "program"),
        ({"tools": [declared({"python": "module.function"})]}, "tools[0].run.python", "module:function"),
        ({"tools": [declared({"command": ["a"], "timeout": 0})]}, "tools[0].run.timeout", "Seconds"),
        ({"tools": [declared({"command": ["a"], "approve": "yes"})]}, "tools[0].run.approve", "asked"),
        ({"tools": [declared({"command": ["a"], "cwd": "nowhere"})]}, "tools[0].run.cwd", "no folder"),
        ({"tools": [declared({"command": ["a"], "shell": True})]}, "tools[0].run", "'shell' is not known"),
        ({"tools": [{"run": {"command": ["a"]}}]}, "tools[0]", "only a built-in tool brings its own"),
        ({"tools": [{"run": {"builtin": "rm"}}]}, "tools[0].run.builtin", "that glmchat brings"),
        ({"tools": [declared({"builtin": "read_file"})]}, "tools[0].run", "leave them out"),
        (
            {"tools": [{"run": {"builtin": "read_file", "roots": ["no/where"]}}]},
            "tools[0].run.roots[0]",
            "no folder",
        ),
        ({"tools": [{"run": {"builtin": "http_get", "private": "no"}}]}, "tools[0].run.private", "private"),
        ({"mcpServers": {"a b": {"command": "x"}}}, "mcpServers", "Letters, digits"),
        ({"mcpServers": {"a": {"args": []}}}, "mcpServers.a", 'either a "command" or a "url"'),
        ({"mcpServers": {"a": {"command": "x", "url": "http://x"}}}, "mcpServers.a", "either"),
        ({"mcpServers": {"a": {"url": "ftp://x"}}}, "mcpServers.a.url", "https://"),
        ({"mcpServers": {"a": {"url": "http://x", "type": "sse"}}}, "mcpServers.a.type", "older sse"),
        ({"mcpServers": {"a": {"command": "${NO_SUCH_NAME}"}}}, "mcpServers.a", "NO_SUCH_NAME is not set"),
        ({"mcpServers": {"a": {"command": "x", "cwd": "nowhere"}}}, "mcpServers.a.cwd", "no folder"),
        ("[" * 100_000, "", "nested too deeply"),
        (f'{{"tools": [{"9" * 5000}]}}', "", "more digits than can be read"),
        (
            {"tools": [declared({"command": ["a", "{city}"]}, parameters={"properties": True})]},
            "tools[0].function.parameters.properties",
            "no JSON Schema",
        ),
    ],
)
def test_a_fault_is_told_with_its_place(tmp_path: Path, value: Any, place: str, says: str) -> None:
    path = written(tmp_path, value)
    _, faults = check_declarations(path)
    found = [fault for fault in faults if fault.place == place and says in fault.text]
    assert found, faults
    with pytest.raises(UsageError) as caught:
        read_declarations(path)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["no/such/file.json", "."])
def test_files_that_cannot_be_read(path: str) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_declarations(path)


def test_a_file_without_an_end_is_not_read_to_it() -> None:
    with pytest.raises(UsageError, match=r"/dev/zero is longer than 10,000,000 characters"):
        read_declarations("/dev/zero")


def test_arguments_against_the_schema() -> None:
    tool = Tool(declared(parameters={**CITY, "additionalProperties": False}))
    assert argument_faults(tool, {"city": "Oslo"}) == ""
    assert argument_faults(tool, {}) == "'city' is a required property"
    assert argument_faults(tool, {"city": 5}) == "city: 5 is not of type 'string'"
    assert "unexpected" in argument_faults(tool, {"city": "x", "town": "y"})
    assert len(argument_faults(tool, {"city": ["x" * 100_000]})) < 500


def test_no_schema_is_fetched_from_the_network() -> None:
    tool = Tool(
        declared(parameters={"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/s"}}})
    )
    assert "http://127.0.0.1:9/s" in argument_faults(tool, {"a": 1})


def test_mcp_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "secret")
    servers = {
        "local": {
            "command": "x",
            "args": ["${MY_TOKEN}", "${NO_SUCH:-b}"],
            "env": {"K": "v"},
            "alwaysAllow": [],
        },
        "web": {
            "url": "https://x/mcp",
            "headers": {"A": "Bearer ${MY_TOKEN}"},
            "timeout": 5,
            "approve": "always",
        },
        "off": {"command": "y", "disabled": True},
    }
    path = written(tmp_path, {"mcpServers": servers})
    local, web = read_declarations(path).servers
    assert local == Server("local", ("x", "secret", "b"), env={"K": "v"}, source=path)
    assert web.headers == {"A": "Bearer secret"}
    assert (web.timeout_s, web.approve) == (5.0, "always")
    assert "secret" not in repr(web)


def test_a_builtin_brings_its_own_declaration(tmp_path: Path) -> None:
    function = {"name": "notes", "description": "Read one of my notes."}
    entries = [
        {"run": {"builtin": "read_file"}},
        {"function": function, "run": {"builtin": "read_file", "roots": ["."], "private": True}},
    ]
    plain, mine = read_declarations(written(tmp_path, {"tools": entries})).tools
    assert plain.name == "read_file"
    assert "path" in plain.parameters["properties"]
    assert (mine.name, mine.description) == ("notes", "Read one of my notes.")
    assert mine.parameters == plain.parameters
    assert isinstance(mine.run, Run)
    assert mine.run.roots == (tmp_path,)
