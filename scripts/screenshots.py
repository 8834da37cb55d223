"""`.venv/bin/python -m scripts.screenshots`: remakes the pictures of docs/, from one real run.

A shell in a pseudo-terminal runs glmchat with the bundled model; what is typed is below, and what is drawn is
what stood on the screen. The speeds are those of this machine: let it do nothing else meanwhile. `make test`
installs what is needed.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import time
from itertools import groupby
from pathlib import Path

import pyte.graphics
from pyte.screens import Char
from rich.console import Console
from rich.style import Style
from rich.text import Text

from tests.pty import ROOT, Terminal, at_prompt, terminal

COMMAND = "glmchat --model demo --greedy --tools examples/weather/tools.json"
QUESTIONS = (
    "What is 47 + 38?",
    "Show me a table of animals",
    "Show me Python code that adds two numbers",
    "What is the weather in Oslo?",
)
COLUMNS, LINES = 84, 90  # all of it on the screen at once, thoughts open as well

pyte.graphics.TEXT[2] = "+blink"  # pyte has no word for dim, and nothing here blinks


def main() -> None:
    """Hold the conversation and write both pictures."""
    with tempfile.TemporaryDirectory() as home:
        mine = {name: "" for name in os.environ if name.startswith(("GLMCHAT_", "XDG_"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = {**mine, "HOME": home, "PATH": path, "PS1": "$ ", "COLORTERM": ""}
        shell = ["--norc", "--noprofile", "-i"]
        with terminal(shell, env, columns=COLUMNS, lines=LINES, program="/bin/bash") as chat:
            chat.wait_for("$")
            chat.send(f"{COMMAND}\r")
            chat.wait_for("demo · cpu · thinking on")
            for question in QUESTIONS:
                ask(chat, question)
            draw(chat, "screenshot.svg")
            chat.send("\x14")  # Ctrl-T
            chat.wait_for(lambda text: "▸" not in text and at_prompt(text))
            draw(chat, "screenshot-open.svg")


def ask(chat: Terminal, question: str) -> None:
    """Type it, allow the tool, and wait for the answer."""
    answers = chat.text.count("tokens/s")
    chat.send(question)
    settle(chat)  # a person too types slower than the model reads
    chat.send("\r")
    if "weather" in question:
        chat.wait_for("Run get_weather?")
        chat.send("y\r")
    chat.wait_for(lambda text: text.count("tokens/s") > answers and at_prompt(text))


def settle(chat: Terminal) -> None:
    """Take in what is still being drawn."""
    until = time.monotonic() + 1
    chat.wait_for(lambda _: time.monotonic() > until)


def draw(chat: Terminal, name: str) -> None:
    """Write the screen, without the empty rows below, as a picture in docs/."""
    settle(chat)
    console = Console(width=COLUMNS, file=io.StringIO(), record=True)
    for row in chat.cells[: chat.text.count("\n") + 1]:
        runs = groupby(row, key=lambda cell: cell._replace(data=""))
        parts = [("".join(cell.data for cell in cells), style(look)) for look, cells in runs]
        console.print(Text.assemble(*parts), no_wrap=True, crop=False)
    console.save_svg(str(ROOT / "docs" / name), title="glmchat", unique_id="glmchat")


def style(look: Char) -> Style:
    """How pyte says it, as rich says it."""
    return Style(
        color=color(look.fg),
        bgcolor=color(look.bg),
        bold=look.bold,
        italic=look.italics,
        underline=look.underscore,
        strike=look.strikethrough,
        reverse=look.reverse,
        dim=look.blink,
    )


def color(name: str) -> str:
    """`brown`, `brightblue` or six hex digits, as rich knows them."""
    if len(name) == 6 and set(name) <= set("0123456789abcdef"):
        return f"#{name}"
    return name.replace("bright", "bright_").replace("brown", "yellow")


if __name__ == "__main__":
    main()
