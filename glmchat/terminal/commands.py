"""The commands of the chat, in one table; /help, completion and the nearest-name hint all read it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from ..chat import Chat
from ..settings import nearest


class Host(Protocol):
    """What a command may do to the chat it is typed into."""

    chat: Chat

    def say(self, text: str) -> None:
        """Print one or more lines."""

    def show_thought(self) -> None:
        """Print the newest thought in full."""

    def quit(self) -> None:
        """End the chat."""


@dataclass(frozen=True, slots=True)
class Command:
    name: str
    arguments: str
    help: str
    run: Callable[[Host, str], None]


def is_command(text: str) -> bool:
    """Whether a line is meant as a command: `/word …` on one line; a space before it makes it text."""
    return re.match(r"/[A-Za-z?]*(\s|$)", text) is not None and "\n" not in text.strip()


def run_command(host: Host, text: str) -> None:
    """Run one command line; an unknown name is answered with the nearest one."""
    name, _, argument = text.strip().partition(" ")
    for command in COMMANDS:
        if command.name == name:
            return command.run(host, argument.strip())
    hint = nearest(name, [c.name for c in COMMANDS]) or "; /help lists the commands."
    return host.say(f"Unknown command {name}{hint} (To send it as text, put a space before it.)")


def _help(host: Host, argument: str) -> None:
    rows = [(f"{c.name} {c.arguments}".strip(), c.help) for c in COMMANDS]
    rows += [(key, text) for key, text in KEYS]
    width = max(len(left) for left, _ in rows)
    host.say("\n".join(f"{left:<{width}}  {right}" for left, right in rows))


def _think(host: Host, argument: str) -> None:
    if argument == "show":
        return host.show_thought()
    chat = host.chat
    if argument in ("on", "off"):
        chat.options = replace(chat.options, enable_thinking=argument == "on")
    elif argument:
        return host.say(f"/think takes on, off or show, not {argument!r}.")
    state = "on" if chat.options.enable_thinking else "off"
    note = "" if chat.engine.info.thinks else " (this model's template has no such switch)"
    return host.say(f"Thinking is {state}{note}.")


def _tools(host: Host, argument: str) -> None:
    if not host.chat.tools:
        return host.say("No tools. Declare some in a JSON file and start with --tools FILE.")
    rows = []
    for tool in host.chat.tools:
        declared = tool.get("function", tool)
        names = ", ".join((declared.get("parameters") or {}).get("properties") or {})
        about = (str(declared.get("description") or "").strip().splitlines() or [""])[0]
        rows.append(f"{declared['name']}({names})  {about}".rstrip())
    return host.say("\n".join([*rows, "The model may call these; calls are shown, not run."]))


def _clear(host: Host, argument: str) -> None:
    host.chat.clear()
    host.say("A new conversation; the old one is forgotten.")


def _quit(host: Host, argument: str) -> None:
    host.quit()


COMMANDS = (
    Command("/help", "", "show this", _help),
    Command("/think", "[on|off|show]", "switch thinking, or show the newest thought in full", _think),
    Command("/tools", "", "list the tools the model may call", _tools),
    Command("/clear", "", "start a new conversation", _clear),
    Command("/quit", "", "leave", _quit),
)

KEYS = (
    ("Enter, Alt-Enter", "send; new line"),
    ("Ctrl-T", "show the newest thought in full"),
    ("Ctrl-C", "stop an answer; clear the line; twice on an empty line: leave"),
    ("Ctrl-D", "leave, on an empty line"),
)
