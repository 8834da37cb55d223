"""The commands on a scripted engine; tests/terminal/test_repl.py has them typed at a terminal."""

from __future__ import annotations

import base64
import json
import os
import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from glmchat.chat import Chat
from glmchat.engine.base import GenerationOptions, ModelInfo
from glmchat.events import ToolDone, TurnDone
from glmchat.messages import ToolCall
from glmchat.terminal.commands import COMMANDS, is_command, run_command
from glmchat.tools.reading import read_declarations
from glmchat.tools.toolbox import Toolbox

from ..pty import terminal
from ..scripted import ScriptedEngine, turn

CODE = "Two ways:\n\n```py\nprint(1)\n```\n\nor\n\n```sh\necho 1\necho 2\n```\n"


class Listener:
    """Implements Host: what commands say and do is kept."""

    def __init__(self, *answers: str, system: str | None = None) -> None:
        self.chat = Chat(ScriptedEngine(*(turn(a) for a in answers), turn("again")), system=system)
        self.turns: list[TurnDone] = []
        self.calls: list[tuple[datetime, ToolDone]] = []
        self.said: list[str] = []
        self.drafted: list[str] = []
        self.did: list[str] = []
        self.not_followed: tuple[str, ...] = ()
        for number in range(len(answers)):
            self.ask(f"question {number + 1}")

    @property
    def info(self) -> ModelInfo | None:
        return replace(self.chat.engine.info, not_followed=self.not_followed)

    def load_model(self, name: str) -> None:
        self.did.append(f"load {name}")

    def say(self, text: str) -> None:
        self.said.append(text)

    def ask(self, text: str) -> None:
        *_, done = self.chat.send(text)
        assert isinstance(done, TurnDone)
        self.turns.append(done)

    def draft(self, text: str) -> None:
        self.drafted.append(text)

    def unfold(self, shown: bool) -> None:
        self.did.append(f"thinking shown: {shown}")

    def quit(self) -> None:
        self.did.append("quit")

    def run(self, line: str) -> str:
        """Run a command; what it said."""
        before = len(self.said)
        run_command(self, line)
        return "\n".join(self.said[before:])

    @property
    def roles(self) -> list[str]:
        return [m.role for m in self.chat.conversation]


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("/help", True),
        ("/system a\nb", True),
        ("/?", True),
        (" /help", False),
        ("/etc/hosts", False),
        ("hi", False),
    ],
)
def test_what_is_a_command(text: str, is_one: bool) -> None:
    assert is_command(text) == is_one


def test_help_has_every_command() -> None:
    said = Listener().run("/help")
    assert all(f"{c.name} " in said and c.help in said for c in COMMANDS)


def test_an_unknown_command_offers_the_nearest() -> None:
    assert "Unknown command /parms; did you mean /params?" in Listener().run("/parms")
    assert "Unknown command /con; did you mean /context?" in Listener().run("/con")
    assert "/help lists the commands" in Listener().run("/xyzzy")


def test_think_switches() -> None:
    host = Listener()
    assert host.run("/think off") == "Thinking is off."
    assert host.run("/think") == "Thinking is on."
    assert "not 'maybe'" in host.run("/think maybe")
    assert host.chat.options.enable_thinking
    host.run("/think show")
    host.run("/think hide")
    assert host.did == ["thinking shown: True", "thinking shown: False"]


def test_params_name_what_is_not_followed() -> None:
    host = Listener()
    assert "generation_config.json" not in host.run("/params")
    host.not_followed = ("num_beams", "max_time")
    assert "generation_config.json: num_beams, max_time." in host.run("/params")


def test_params_are_shown_and_set_within_bounds() -> None:
    host = Listener()
    assert "temperature  default" in host.run("/params")
    assert "temperature  0.5 " in host.run("/params temperature 0.5")
    host.run("/params top-p=0.9")
    host.run("/params greedy on")
    assert host.chat.options == GenerationOptions(temperature=0.5, top_p=0.9, greedy=True)
    assert (
        host.run("/params temperature 3") == "temperature must be a number from 0 to 2, not '3'; or default."
    )
    assert (
        host.run("/params seed") == f"seed must be a whole number from 0 to {2**63 - 1}, not ''; or default."
    )
    assert "did you mean temperature?" in host.run("/params temprature 1")
    host.run("/params temperature default")
    assert host.chat.options.temperature is None


def test_system(tmp_path: Path) -> None:
    host = Listener("hello")
    assert host.run("/system") == "No system message."
    host.run("/system You are brief.\nAlways.")
    assert host.run("/system") == "You are brief.\nAlways."
    (tmp_path / "s.txt").write_text("From a file.\n")
    host.run(f"/system @{tmp_path}/s.txt")
    assert host.run("/system") == "From a file."
    assert "There is no file" in host.run("/system @missing")
    assert "There is no file" in host.run("/system @~nobody-here/x")
    (tmp_path / "my words.txt").write_text("From another.\n")
    host.run(f'/system @"{tmp_path}/my words.txt"')
    assert host.run("/system") == "From another."
    host.run(f"/system @{tmp_path}/s.txt")
    assert host.run("/system") == "From a file."
    host.run("/system off")
    assert host.roles == ["user", "assistant"]


def test_a_file_that_no_message_can_name(tmp_path: Path) -> None:
    (tmp_path / 'a"b c.txt').write_text("x")
    said = Listener("hello").run(f'/file {tmp_path}/a"b c.txt')
    assert "cannot stand in a message" in said
    assert "There is no file ~nobody-here/x" in Listener("hello").run("/file ~nobody-here/x")


def test_file_becomes_a_draft(tmp_path: Path) -> None:
    host = Listener()
    (tmp_path / "a.txt").write_text("x" * 2000)
    assert "2.0 kB" in host.run(f"/file {tmp_path}/a.txt")
    assert host.drafted == [f"@{tmp_path}/a.txt "]
    assert "There is no file nope" in host.run("/file nope")
    assert "Which file?" in host.run("/file")


def test_retry_undo_edit() -> None:
    host = Listener("one", "two")
    host.run("/retry")
    assert [m.content for m in host.chat.conversation] == ["question 1", "one", "question 2", "again"]
    assert host.run("/undo") == "Taken back: question 2"
    host.run("/edit")
    assert host.drafted == ["question 1"]
    assert [host.run(c) for c in ("/retry", "/undo", "/edit")] == [
        "Nothing to try again.",
        "Nothing to take back.",
        "Nothing to edit.",
    ]


def test_copy_by_the_local_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "xclip"
    tool.write_text(f'#!/bin/sh\ncat > "{tmp_path}/clip"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    host = Listener(CODE)
    assert host.run("/copy").startswith("Copied: the answer, ")
    assert (tmp_path / "clip").read_text() == CODE
    assert host.run("/copy 2") == "Copied: code block 2, 2 lines."
    assert (tmp_path / "clip").read_text() == "echo 1\necho 2\n"
    assert host.run("/copy 3") == "No code block 3: the answer has 2 code blocks."
    odd = "<details>\n```\nin HTML\n```\n\n$$\n```\nin LaTeX\n```\n$$\n"
    assert Listener(odd).run("/copy 1") == "Copied: code block 1, 1 line.", "as the screen shows them"
    assert (tmp_path / "clip").read_text() == "in HTML\n"
    assert Listener(odd).run("/copy 2") == "Copied: code block 2, 5 lines.", "the formula, whole"
    assert host.run("/copy x") == "No code block x: the answer has 2 code blocks."
    digits = "1" * 5000  # more than Python makes a number of
    assert host.run(f"/copy {digits}") == f"No code block {'1' * 20}…: the answer has 2 code blocks."
    assert Listener().run("/copy") == "No answer to copy yet."


def test_what_stands_behind_a_command_is_not_passed_over() -> None:
    host = Listener("one", "two")
    for line in ("/undo 2", "/retry but shorter", "/clear the table", "/quit smoking"):
        assert host.run(line).startswith(f"{line.split()[0]} takes nothing behind it.")
    assert [m.content for m in host.chat.conversation if m.role == "assistant"] == ["one", "two"]
    assert host.did == []


def test_copy_through_the_terminal() -> None:
    code = "from glmchat.terminal.clipboard import copy; print(copy('naïve'))"
    with terminal(["-c", code], {"DISPLAY": "", "WAYLAND_DISPLAY": "", "PATH": "/nowhere"}) as shown:
        shown.wait_for("Sent to the terminal")
        assert b"\x1b]52;c;" + base64.b64encode("naïve".encode()) + b"\x07" in shown.raw


def test_stats_context_prompt_model() -> None:
    host = Listener()
    assert host.run("/stats") == "No answer yet."
    host = Listener("one two", "three", system="Be brief.")
    said = host.run("/stats")
    assert "newest answer  1 token · 50.0 tokens/s · first token 0.25 s" in said
    assert "so far         2 answers in 2.0 s" in said
    assert "3 tokens written, 0 of them in thoughts" in said
    assert "16 tokens read, 0 of them from the KV cache" in said
    assert host.run("/context").endswith("5 of 20 tokens, 25%")
    assert host.run("/context").startswith("████████░░░")
    assert host.run("/prompt").startswith("<|system|>Be brief.<|user|>question 1<|assistant|>one two")
    assert "<|user|>and then?" in host.run("/prompt and then?")
    assert "and then?" not in host.run("/prompt"), "asking what it would be changes nothing"
    assert host.run("/model") == "scripted, on cpu, context of 20 tokens, loaded in 0.5 s"
    host.run("/model other")
    assert host.did[-1] == "load other"


def test_clear_and_quit() -> None:
    host = Listener("one", system="Be brief.")
    host.run("/clear")
    assert host.roles == ["system"]
    host.run("/quit")
    assert host.did == ["quit"]


def test_tools_are_listed_switched_read_anew_and_their_calls_told(tmp_path: Path) -> None:
    file = tmp_path / "tools.json"
    file.write_text(json.dumps({"tools": [{"run": {"builtin": "calculate", "approve": "always"}}]}))
    host = Listener()
    host.chat.toolbox = Toolbox(lambda: read_declarations(str(file)))
    assert re.match(rf"calculate\(expression\)  runs  {re.escape(str(file))}  \w", host.run("/tools"))
    assert host.run("/tools off calculate") == "calculate: off."
    assert host.chat.tools == ()
    assert "  off  " in host.run("/tools")
    assert host.run("/tools on calculate") == "calculate: on."
    assert len(host.chat.tools) == 1
    assert host.run("/tools off nothing") == "There is no tool nothing; /tools lists them."
    file.write_text("{")
    assert "not JSON" in host.run("/tools reload")
    file.write_text('{"tools": []}')
    assert host.run("/tools reload") == "0 tools, read anew."
    assert "glmchat tools init" in host.run("/tools")
    assert host.run("/tools log") == "No tool was called yet."
    done = ToolDone(
        ToolCall("calculate", {"expression": "1/0"}), "", ok=False, note="exit code 1", seconds=0.5
    )
    host.calls.append((datetime(2026, 1, 2, 3, 4, 5), done))
    assert host.run("/tools log") == '03:04:05  calculate(expression="1/0") ✗ exit code 1 · 0.5 s'
    assert "takes on NAME" in host.run("/tools of calculate")
