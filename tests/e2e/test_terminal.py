"""The real program with the bundled checkpoint, and a person at a pseudo-terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ..pty import ROOT, Terminal, at_prompt, terminal

SUM = "What is 987 + 658?"  # a thought of some length
LIST = "What commands are there?"  # an answer of some length

LATE = "Ctrl-C again leaves"  # the turn was over when the key came

Start = Callable[..., Terminal]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def begin(
            *options: str, wait: bool = True, env: dict[str, str] | None = None, **more: object
        ) -> Terminal:
            environ = {
                "HOME": str(tmp_path),
                "XDG_STATE_HOME": "",
                "XDG_CONFIG_HOME": "",
                "GLMCHAT_MODEL": "",
            }
            words = ["-m", "glmchat", "--greedy", "--max-tokens", "400", *options]
            chat = stack.enter_context(terminal(words, {**environ, **(env or {})}, **more))
            if wait:
                chat.wait_for("demo · cpu · thinking")
            return chat

        yield begin


SLOW = ("--dtype", "float32", "--speculate", "off")
"""So that a moment of a turn can be caught: in BF16, with guesses, it is four times as fast."""


def ended(text: str) -> int:
    """How many turns ended, whole or stopped."""
    return text.count("tokens/s")


def ask_and_catch(chat: Terminal, question: str, wanted: str) -> int:
    """Ask until the moment is seen at which `wanted` is on the screen and the turn still runs.

    A model this small may be done before the screen was read; then it is asked again. Returns how many turns
    ended before.
    """
    for _ in range(8):
        before, seen = ended(chat.text), chat.text.count(wanted)
        chat.paste(question)
        chat.send("\r")
        chat.wait_for(lambda text, b=before, s=seen: text.count(wanted) > s or ended(text) > b)
        if ended(chat.text) == before:
            return before
    raise AssertionError(f"{wanted!r} was never caught:\n{chat.text}")


def leave(chat: Terminal) -> None:
    """Quit, and find the terminal as it was: cursor, echo, paste mode, nothing left below."""
    chat.send("/quit\r")
    assert_restored(chat, chat.wait_end())


def assert_restored(chat: Terminal, code: int) -> None:
    assert code == 0, chat.text
    assert chat.modes_after == chat.modes
    assert not chat.cursor_hidden
    assert chat.raw.rfind(b"\x1b[?2004l") > chat.raw.rfind(b"\x1b[?2004h"), "bracketed paste is off again"
    assert b"Traceback" not in chat.raw


def test_a_conversation(start: Start) -> None:
    chat = start(wait=False)
    chat.wait_for("bundled demo")
    chat.wait_for("thinking on", timeout=10)
    chat.send("What is 21 + 14?\r")  # typed before the model is there
    chat.wait_for("first token")
    assert re.search(r"▸ Thought for [\d.]+ m?s · \d+ tokens?\n\n.*\S", chat.text), chat.text
    assert re.search(r"\d+ tokens · \d[\d.,]* tokens/s · first token [\d.]+ m?s", chat.text)
    assert "<think>" not in chat.text
    chat.wait_for("demo · cpu · thinking on")
    chat.send("/think off\r")
    chat.wait_for("thinking off")
    folded = chat.text.count("▸ Thought")
    chat.send("hello\r")
    chat.wait_for(lambda text: text.count("first token") == 2 and at_prompt(text))
    assert chat.text.count("▸ Thought") == folded, "thinking off is obeyed"
    assert re.search(r"^\d+ of \d+ prompt tokens reused|· \d+ of \d+ prompt", chat.text, re.MULTILINE)
    leave(chat)


def test_thoughts_unfold_while_they_are_written_and_after(start: Start) -> None:
    chat = start(*SLOW)
    before = ask_and_catch(chat, SUM, "Thinking ·")
    chat.send("\x14")
    chat.wait_for(lambda text: "▾ Thought for" in text and ended(text) > before)
    assert re.search(r"▾ Thought for [\d.]+ m?s · \d+ tokens\n987 \+ 658\n", chat.text), (
        "the whole thought is there"
    )
    assert "Thinking" not in chat.text
    chat.send("\x14")
    chat.wait_for(lambda text: "▾" not in text and "▸ Thought" in text)
    assert "carry" not in chat.text
    assert chat.text.count("▸ Thought") == ended(chat.text)
    chat.send("/think show\r")
    chat.wait_for("carry")
    leave(chat)


def test_resized_while_it_writes(start: Start) -> None:
    chat = start(*SLOW, "--no-think", columns=120, lines=40)
    before = ask_and_catch(chat, LIST, "The commands are")
    chat.resize(40, 40)
    chat.wait_for(lambda text: ended(text) > before)
    assert all(len(line) <= 40 for line in chat.lines)
    assert chat.text.count("glmchat · /help") == 1, "nothing is left of the wide screen, or drawn twice"
    assert chat.text.count(f"› {LIST}") + chat.text.count(f"» {LIST}") == before + 1
    assert chat.text.count("• /clear") == before + 1
    leave(chat)


def test_500_pasted_lines(start: Start) -> None:
    chat = start("--max-tokens", "5")
    chat.paste("\n".join(f"{n} a" for n in range(500)))
    chat.wait_for("› [pasted 500 lines]")
    assert ended(chat.text) == 0, "a paste is never sent by itself"
    chat.send(" thanks\r")
    chat.wait_for("Reading the prompt: ")
    chat.wait_for(lambda text: ended(text) == 1)
    assert "499" not in chat.text
    chat.send("/prompt\r")
    chat.wait_for("499 a thanks")
    leave(chat)


def test_ctrl_d_before_the_prompt_is_there(start: Start) -> None:
    """Which the terminal, as it is until then, takes for the end of a line."""
    chat = start(wait=False)
    chat.send("\x04")
    assert_restored(chat, chat.wait_end())


def test_ctrl_c_while_the_model_loads(start: Start) -> None:
    chat = start(wait=False)
    chat.wait_for("thinking on", timeout=10)
    chat.send("early\r")
    chat.wait_for("queued: early")
    chat.send("\x03")
    assert chat.wait_for("› early") < 2.0
    chat.send("\x03")
    chat.wait_for(lambda text: "early" not in text.rpartition("›")[2])
    chat.send("\x03")
    assert chat.wait_for("Ctrl-C again leaves") < 2.0
    chat.send("\x03")
    assert_restored(chat, chat.wait_end())


@pytest.mark.parametrize(
    ("options", "question", "moment", "left"),
    [
        ((), "\n".join(["two words"] * 500), "Reading the prompt", "› [pasted 500 lines]\ndemo · cpu"),
        ((), SUM, "Thinking ·", " · unfinished\n\nstopped\n"),
        (("--no-think",), LIST, "The commands are", "\n\nstopped\n"),
    ],
    ids=["prefill", "thinking", "answer"],
)
def test_ctrl_c(start: Start, options: tuple[str, ...], question: str, moment: str, left: str) -> None:
    chat = start(*SLOW, *options, columns=200, lines=60)
    for _ in range(8):
        before = chat.text.count(left)
        turns = ask_and_catch(chat, question, moment)
        chat.send("\x03")
        took = chat.wait_for(  # or it ended by itself just then
            lambda text, b=before, t=turns: (
                at_prompt(text) and (text.count(left) > b or LATE in text or ended(text) > t)
            )
        )
        assert took < 10, "a step or a chunk of this model takes far less, but a busy machine may not"
        if chat.text.count(left) > before:
            break
    assert chat.text.count(left) > before
    assert "Reading" not in chat.text
    assert "Thinking" not in chat.text
    chat.send("x\x03")  # clears what was given back to the line, if anything
    before = ended(chat.text)
    chat.send("hi\r")
    chat.wait_for(lambda text: ended(text) > before)
    leave(chat)


def test_a_killed_engine_costs_one_message(start: Start) -> None:
    chat = start(*SLOW, columns=120, lines=40)
    ask_and_catch(chat, SUM, "Thinking")
    (engine,) = chat.children
    os.kill(engine, signal.SIGKILL)
    chat.wait_for(lambda text: "was killed" in text and at_prompt(text))
    assert "▸ Thought, unfinished" in chat.text
    before = ended(chat.text)
    chat.send("hi\r")
    chat.wait_for("The model again")
    chat.wait_for(lambda text: ended(text) > before)
    assert chat.children != [engine]
    leave(chat)


def test_a_tool_run_is_allowed_and_another_stopped(start: Start, tmp_path: Path) -> None:
    (tool,) = json.loads((ROOT / "examples" / "weather" / "tools.json").read_text())["tools"]
    script = "[ $1 = Rome ] && exec sleep 77; echo 3°C, fog"
    tool["run"] = {"command": ["sh", "-c", script, "weather", "{city}"]}
    (tmp_path / "tools.json").write_text(json.dumps({"tools": [tool]}))
    chat = start("--tools", str(tmp_path / "tools.json"))
    chat.send("What is the weather in Oslo?\r")
    chat.wait_for("Run get_weather?")
    chat.send("s\r")
    chat.wait_for('▸ ⚙ get_weather(city="Oslo") ✓')
    chat.wait_for(lambda text: ended(text) == 1)
    assert "3°C, fog" in chat.text
    chat.send("What is the weather in Rome?\r")
    chat.wait_for('⚙ get_weather(city="Rome") · ')
    chat.send("\x03")
    assert chat.wait_for("✗ stopped by the person") < 10
    chat.wait_for(at_prompt)
    assert not [p for p in Path("/proc").glob("[0-9]*/cmdline") if read(p) == b"sleep\0" + b"77\0"]
    leave(chat)


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it ended meanwhile
        return b""


def test_what_is_typed_ahead_is_answered_in_order(start: Start) -> None:
    chat = start(wait=False)
    chat.send("hello\rWhat is 2 + 3?\rthan")  # before the program could even set up the keyboard
    chat.wait_for(lambda text: ended(text) == 2, timeout=90)
    chat.send("ks")
    chat.wait_for("› thanks")
    assert chat.text.index("› hello") < chat.text.index("› What is 2 + 3?") < chat.text.index("› thanks")
    chat.send("\x03")
    leave(chat)


def test_what_is_typed_is_read_while_it_is_typed(start: Start) -> None:
    chat = start()
    for word in ("Please", "tell", "me,", "my", "dear", "friend,", "what", "is", "2", "+"):
        chat.send(f"{word} ")
        chat.wait_for(lambda text, w=word: w in text)
    until = time.monotonic() + 2
    chat.wait_for(lambda _: time.monotonic() > until)
    chat.send("3?\r")
    chat.wait_for(lambda text: ended(text) == 1)
    stats = re.search(r"(\d+) of (\d+) prompt tokens reused", chat.text)
    assert stats is not None, chat.text
    reused, all_of_them = map(int, stats.groups())
    assert all_of_them - reused <= len("+ 3?<|assistant|>\n<think>")
    assert reused > len("[gMASK]<sop><|user|>\n")
    leave(chat)


def test_ctrl_z_and_back(start: Start, tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path), "PS1": "shell> ", "XDG_STATE_HOME": "", "XDG_CONFIG_HOME": ""}
    with terminal(["--norc", "--noprofile", "-i"], env, program="/bin/bash") as chat:
        chat.wait_for("shell>")
        chat.send(f"{sys.executable} -m glmchat --model demo --greedy {' '.join(SLOW)}\r")
        chat.wait_for("demo · cpu · thinking on")
        ask_and_catch(chat, SUM, "Thinking ·")
        chat.send("half a line\x1a")
        chat.wait_for(lambda text: "Stopped" in text and text.endswith("shell>"))
        chat.send("stty -a\r")
        chat.wait_for(" echo ")
        assert " -echo " not in chat.text, "the shell has its echo"
        assert not chat.cursor_hidden
        chat.send("echo of the shell\r")
        chat.wait_for("\nof the shell")
        chat.send("fg\r")
        chat.wait_for(lambda text: "› half a line" in text and at_prompt(text))
        chat.send("\x03" * 2)
        chat.wait_for(lambda text: at_prompt(text) and ended(text) > 0)
        chat.send("\x14")  # all of it is drawn again
        chat.wait_for("all of it again")
        assert "\nof the shell" in chat.text
        chat.send("\x03\x04")
        chat.wait_for(lambda text: text.endswith("shell>"))
        chat.send("exit\r")
        chat.wait_end()


@pytest.mark.parametrize("moment", ["load", "thinking"])
def test_quit(start: Start, moment: str) -> None:
    chat = start(*SLOW, wait=moment != "load")
    if moment == "load":
        chat.wait_for("thinking on", timeout=10)
    else:
        ask_and_catch(chat, SUM, "Thinking ·")
    chat.send("\x04")
    assert_restored(chat, chat.wait_end())


@pytest.mark.parametrize("term", ["xterm-256color", "tmux-256color", "screen", "dumb"])
def test_the_same_keys_on_every_terminal(start: Start, term: str) -> None:
    chat = start(env={"TERM": term}, wait=False)
    chat.wait_for("›", timeout=90)
    for keys, wanted in (
        ("/think show\r", "›"),
        ("What is 21 + 14?\r", "tokens/s"),
        ("A table of fruits\r", "apple"),
        ("/help\r", "Ctrl-D"),
        ("/stats\r", "so far"),
        ("/think off\r", "Thinking is off"),
        ("\x14hello\r" if term != "dumb" else "hello\r", "tokens/s"),
    ):
        before = chat.text.count(wanted)
        chat.send(keys)
        chat.wait_for(lambda text, wanted=wanted, before=before: text.count(wanted) > before or wanted == "›")
    chat.wait_for(lambda text: ended(text) >= 3)
    chat.send("/quit\r")
    assert chat.wait_end() == 0
    assert not re.search(r"\x1b|\^\[|\[\d*[ABCDJKm]|\?\d{2,4}[hl]|␛", chat.text), chat.text
    if term == "dumb":
        assert b"\x1b" not in chat.raw
