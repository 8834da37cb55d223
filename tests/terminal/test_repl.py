"""The REPL in a real pseudo-terminal, on a scripted engine: fast, and every moment can be chosen."""

from __future__ import annotations

import contextlib
import re
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from ..pty import Terminal, at_prompt, terminal
from .scripted_repl import STUBBORN

Start = Callable[..., Terminal]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def begin(name: str, *, delay: float = 0.0, load_s: float = 0.0, **more: object) -> Terminal:
            env = {"HOME": str(tmp_path), "XDG_STATE_HOME": "", "XDG_CONFIG_HOME": "", **more.pop("env", {})}  # type: ignore[dict-item]
            words = ["-m", "tests.terminal.scripted_repl", name, str(delay), str(load_s)]
            made: AbstractContextManager[Terminal] = terminal(words, env, **more)  # type: ignore[arg-type]
            return stack.enter_context(made)

        yield begin


def leave(chat: Terminal) -> None:
    """Quit, and find the terminal as it was."""
    chat.send("/quit\r")
    assert chat.wait_end() == 0
    assert chat.modes_after == chat.modes
    assert not chat.cursor_hidden
    assert chat.raw.rfind(b"\x1b[?2004l") > chat.raw.rfind(b"\x1b[?2004h"), "bracketed paste is off again"


def test_ask_think_fold_unfold_ask_again(start: Start) -> None:
    chat = start("talk", load_s=0.3)
    chat.wait_for("loading weights · ██████░░ · 3.0 GB of 4.0 GB, shard 2 of 5 · thinking on")
    chat.wait_for("scripted · cpu · thinking on")
    chat.send("hi\r")
    chat.wait_for("first token 0.25 s")
    assert "› hi\n\n▸ Thought for 1.5 s · 3 tokens\n\nHello you.\n\n5 tokens · 50.0 tokens/s" in chat.text
    assert "They greet me." not in chat.text
    chat.send("\x14")  # Ctrl-T
    chat.wait_for("They greet me.")
    chat.send("/think off\r")
    chat.wait_for("Thinking is off.")
    chat.wait_for("thinking off")
    chat.send("again\r")
    chat.wait_for("Second answer.")
    chat.send("/think hide\r")
    folded = "› hi\n\n▸ Thought for 1.5 s · 3 tokens\n\nHello you.\n\n5 tokens"
    chat.wait_for(lambda text: "They greet me." not in text and folded in text)
    leave(chat)


@pytest.mark.parametrize("moment", ["at once", "prompt"])
def test_what_is_typed_before_the_line_stands(start: Start, moment: str) -> None:
    """While most of the program is still imported, or all of it."""
    chat = start("talk")
    if moment == "prompt":
        chat.wait_for("›")
        assert not at_prompt(chat.text), "that was not early"
    chat.send("ac\x1b[Db\r")
    if moment == "prompt":
        chat.paste("one\ntwo")
    chat.wait_for("Hello you.")
    assert "› abc\n\n▸ Thought" in chat.text
    if moment == "prompt":
        chat.wait_for("› one\n  two")
        chat.send("\x03")
    chat.wait_for(at_prompt)
    leave(chat)


@pytest.mark.parametrize("moment", ["at once", "prompt"])
def test_leaving_before_the_line_stands(start: Start, moment: str) -> None:
    chat = start("talk")
    if moment == "prompt":
        chat.wait_for("›")
    chat.send("\x04")
    assert chat.wait_end() == 0, chat.text
    assert chat.modes_after == chat.modes


def test_ctrl_c_before_the_line_stands(start: Start) -> None:
    chat = start("talk")
    chat.wait_for("›")
    assert not at_prompt(chat.text), "that was not early"
    chat.send("\x03")
    assert chat.wait_end() == 130
    assert chat.modes_after == chat.modes
    assert "Traceback" not in chat.text


def test_commands_answer(start: Start) -> None:
    chat = start("calls")
    chat.send("/help\r")
    chat.wait_for("Ctrl-D")
    for name in ("/think [on|off|show|hide]", "/tools", "/clear", "/quit", "Alt-Enter"):
        assert name in chat.text
    chat.send("/thnik\r")
    chat.wait_for("Unknown command /thnik; did you mean /think?")
    chat.send("/tools\r")
    chat.wait_for("get_weather(city)  shown only  Weather of a place.")
    chat.send("/think maybe\r")
    chat.wait_for("not 'maybe'")
    chat.send("weather?\r")
    chat.wait_for('▸ ⚙ get_weather(city="Oslo") · not run')
    chat.send("\x14")
    chat.wait_for("▾ ⚙ get_weather · not run\n  city: Oslo")
    chat.send("/clear\r")
    chat.wait_for("A new conversation")
    leave(chat)


def test_another_model_takes_over(start: Start) -> None:
    chat = start("talk", load_s=0.2)
    chat.send("hi\r")
    chat.wait_for("first token")
    chat.send("/model other\r")
    chat.wait_for("Loading other")
    chat.wait_for("other · cpu · thinking on")
    chat.send("who are you?\r")
    chat.wait_for("I am other.")
    leave(chat)


@pytest.mark.parametrize("asking", [True, False])
def test_a_model_that_fails_gives_the_one_before_back(start: Start, asking: bool) -> None:
    chat = start("talk", load_s=1.0)
    chat.wait_for("scripted · cpu · thinking on")
    chat.send("/model nonsense\r")
    chat.wait_for("Loading nonsense")
    chat.send("my question" + "\r" * asking)
    chat.wait_for("nonsense is no model.")
    chat.wait_for("Back to scripted.")
    chat.wait_for("scripted · cpu · thinking on")
    assert "my question" in chat.text.rpartition("Back to")[2], "what was typed is still there"
    if not asking:
        chat.send("\r")
    chat.wait_for("I am scripted.")
    leave(chat)


def test_a_model_whose_process_cannot_be_started(start: Start) -> None:
    chat = start("talk")
    chat.wait_for("thinking on")
    chat.send("/model crowded\r")
    chat.wait_for("A process for crowded cannot be started; end other programs first.")
    chat.wait_for("Back to scripted.")
    chat.wait_for(at_prompt)
    chat.send("hi\r")
    chat.wait_for("I am scripted.")
    chat.send("/model full\r")
    chat.wait_for("There is no model now; /model NAME loads one.")
    chat.send("/model at last\r")
    chat.wait_for("at last · cpu")
    chat.send("still there?\r")
    chat.wait_for("I am at last.")
    leave(chat)


def test_a_question_is_taken_back_edited_and_asked_again(start: Start) -> None:
    chat = start("talk")
    chat.send("one question\r")
    chat.wait_for("first token")
    chat.send("/edit\r")
    chat.wait_for(lambda text: text.count("› one question") == 2)
    chat.send("!\r")
    chat.wait_for("› one question!")
    chat.wait_for("Second answer.")
    chat.send("/context\r")
    chat.wait_for("3 of 20 tokens, 15%")
    chat.send("/undo\r")
    chat.wait_for("Taken back: one question!")
    leave(chat)


def test_a_file_goes_with_the_message(start: Start, tmp_path: Path) -> None:
    (tmp_path / "some notes.txt").write_text("buy milk\n")
    chat = start("talk", columns=200)
    chat.send(f"/file {tmp_path}/some notes.txt\r")
    chat.wait_for("9 B, goes with the message below.")
    chat.wait_for(f'› @"{tmp_path}/some notes.txt"')
    chat.send("summarise\r")
    chat.wait_for("Hello you.")
    chat.send("/prompt\r")
    chat.wait_for("```txt\nbuy milk\n```")
    chat.send("/edit\r")
    chat.wait_for(lambda text: text.count('notes.txt" summarise') >= 3)
    chat.send("\x03")
    leave(chat)


def test_new_lines_and_the_editor(start: Start, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf "\\nfrom the editor" >> "$1"\n')
    editor.chmod(0o755)
    chat = start("talk", env={"EDITOR": str(editor), "VISUAL": ""})
    chat.wait_for("thinking on")
    chat.send("one\ntwo\x1b[13;2uthree\x1b[27;2;13~four")
    chat.wait_for("› one\n  two\n  three\n  four")
    chat.send("\x18\x05")
    chat.wait_for("from the editor")
    assert "Hello" not in chat.text, "what the editor gave is not sent unseen"
    chat.send("\r")
    chat.wait_for("Hello you.")
    leave(chat)


def test_nothing_is_drawn_over_an_editor(start: Start, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text(
        '#!/bin/sh\nprintf "\\033[2J\\033[Hthe editor stands"; sleep 1.5; printf " until here"; sleep 0.5\n'
        'printf "edited" > "$1"\n'
    )
    editor.chmod(0o755)
    chat = start("slow", delay=0.02, env={"EDITOR": str(editor), "VISUAL": ""})
    chat.wait_for("thinking on")
    chat.send("go\r")
    chat.wait_for("Thinking")
    chat.send("\x18\x05")
    chat.wait_for("the editor stands")
    chat.resize(70, 24)
    chat.wait_for("until here")
    assert "\n".join(chat.lines[-24:]).strip() == "the editor stands until here"
    chat.wait_for("› edited")
    chat.wait_for("word word")
    chat.send("\x03")
    chat.wait_for("stopped")
    chat.send("\x03")
    leave(chat)


@pytest.mark.parametrize(
    ("leaves", "says"),
    [('printf "caf\\351" > "$1"', "a text that is not UTF-8"), ('rm "$1"', "The editor left no file")],
)
def test_what_an_editor_leaves_that_cannot_be_read(
    start: Start, tmp_path: Path, leaves: str, says: str
) -> None:
    editor = tmp_path / "editor"
    editor.write_text(f"#!/bin/sh\n{leaves}\n")
    editor.chmod(0o755)
    chat = start("talk", env={"EDITOR": str(editor), "VISUAL": ""})
    chat.wait_for("thinking on")
    chat.send("my words\x18\x05")
    chat.wait_for(says)
    chat.wait_for("› my words")
    assert "Press ENTER" not in chat.text
    chat.send("\r")
    chat.wait_for("Hello you.")
    leave(chat)


def test_completion(start: Start, tmp_path: Path) -> None:
    (tmp_path / "holidays.txt").write_text("Bergen")
    chat = start("talk", columns=200)
    chat.wait_for("thinking on")
    chat.send("/para")
    chat.wait_for("show how answers are sampled")
    chat.send("\t")
    chat.wait_for("› /params")
    chat.send(" temp")
    chat.wait_for("\n temperature")
    chat.send("\t")
    chat.wait_for("› /params temperature")
    chat.send(" 0.5\r")
    chat.wait_for("temperature  0.5")
    chat.send(f"read @{tmp_path}/holi")
    chat.wait_for("\n holidays.txt")
    chat.send("\t")
    chat.wait_for("/holidays.txt")
    chat.send("\x03")
    leave(chat)


def test_names_of_tools_are_completed(start: Start) -> None:
    chat = start("tools", columns=200)
    chat.wait_for("thinking on")
    chat.send("/tools off get")
    chat.wait_for("\n get_weather")
    chat.send("\t")
    chat.wait_for("› /tools off get_weather")
    chat.send("\r")
    chat.wait_for("get_weather: off.")
    leave(chat)


def test_ctrl_c_stops_an_answer_and_the_next_one_comes(start: Start) -> None:
    chat = start("slow", delay=0.01)
    chat.send("tell me\r")
    chat.wait_for("word word word")
    chat.send("\x03")
    assert chat.wait_for(lambda text: at_prompt(text) and "stopped" in text) < 0.5
    kept = chat.text
    assert kept.count("word") > 2
    assert "▸ Thought for" in kept
    chat.send("more\r")
    chat.wait_for("Quick one.")
    assert "Thinking" not in chat.text, "nothing of the live part is left behind"
    leave(chat)


def test_ctrl_c_while_thinking_folds_what_came(start: Start) -> None:
    chat = start("slow", delay=0.01)
    chat.send("tell me\r")
    chat.wait_for("Thinking")
    chat.send("\x03")
    chat.wait_for("▸ Thought, unfinished")
    chat.wait_for("stopped")
    chat.send("more\r")
    chat.wait_for("Quick one.")
    leave(chat)


def test_ctrl_c_does_not_wait_for_a_slow_engine(start: Start) -> None:
    chat = start("talk", delay=5.0)
    chat.wait_for("thinking on")
    chat.send("first\r")
    chat.wait_for("Reading the prompt")
    chat.send("\x03")
    assert chat.wait_for("stopping …") < 0.5
    chat.send("meanwhile")
    assert chat.wait_for("› meanwhile") < 0.5, "the prompt is alive"
    chat.send("\x03")
    chat.wait_for("stopped")
    chat.wait_for("› first\n  meanwhile")
    chat.send("\x03")
    leave(chat)


def test_ctrl_c_at_the_prompt(start: Start) -> None:
    chat = start("talk")
    chat.wait_for("thinking on")
    chat.send("half a thought\x03")
    chat.send("hi\r")
    chat.wait_for(lambda text: "first token" in text and at_prompt(text))
    assert "› hi" in chat.text
    assert "half" not in chat.text
    chat.send("\x03")
    chat.wait_for("Ctrl-C again leaves")
    chat.send("x\x03")
    chat.wait_for("thinking on")
    chat.send("\x03")
    chat.wait_for("Ctrl-C again leaves")
    chat.send("\x03")
    assert chat.wait_end() == 0
    assert chat.modes_after == chat.modes


def test_ctrl_d_leaves(start: Start) -> None:
    chat = start("talk")
    chat.wait_for("thinking on")
    chat.send("\x04")
    assert chat.wait_end() == 0
    assert chat.modes_after == chat.modes


def test_a_paste_of_many_lines_is_not_sent(start: Start) -> None:
    chat = start("talk")
    chat.wait_for("thinking on")
    chat.paste("first line\r\nsecond line\r\n/quit\r\n")
    chat.wait_for("/quit")
    chat.send("third\x1b\rfourth")
    chat.wait_for("fourth")
    assert "Hello" not in chat.text
    chat.send("\r")
    chat.wait_for("Hello you.")
    leave(chat)


def test_the_line_is_alive_while_the_answer_comes(start: Start) -> None:
    chat = start("slow", delay=0.004)
    chat.send("go\r")
    chat.wait_for("word word")
    chat.send("later")
    chat.paste("\nwith\nlines")
    assert chat.wait_for("› later\n  with\n  lines") < 0.5
    assert "first token" not in chat.text, "the answer still comes"
    chat.wait_for("first token")
    assert "wordlater" not in chat.text.replace(" ", ""), "keys are not echoed into the answer"
    chat.send("\r")
    chat.wait_for("Quick one.")
    leave(chat)


def test_messages_are_queued_and_taken_back(start: Start) -> None:
    chat = start("slow", delay=0.01)
    chat.send("go\r")
    chat.wait_for("Thinking")
    chat.send("second\r")
    chat.wait_for("queued: second")
    chat.send("third\nand more\r")
    chat.wait_for("queued: third…\n›")
    chat.send("\x1b")  # Esc
    chat.wait_for("› third\n  and more")
    assert "queued: third" not in chat.text
    chat.send("\x03")
    chat.wait_for("stopped")
    chat.wait_for("Quick one.")
    chat.wait_for("first token")  # that turn is over: Ctrl-C is for the line now
    assert "› second" in chat.text
    assert "queued" not in chat.text
    chat.send("\x03")  # the line still holds what was taken back
    leave(chat)


def test_thoughts_open_and_fold_while_the_answer_comes(start: Start) -> None:
    chat = start("slow", delay=0.01)
    chat.send("go\r")
    chat.wait_for("word word")
    chat.send("\x14")
    chat.wait_for("▾ Thought for 1.5 s · 100 tokens\nhm hm")
    chat.send("\x14")
    chat.wait_for(lambda text: "hm" not in text)
    assert chat.text.count("▸ Thought for 1.5 s · 100 tokens") == 1
    chat.wait_for("first token")
    assert chat.text.count("word") == 400
    leave(chat)


def test_a_long_paste_stands_as_a_word_and_is_sent_whole(start: Start) -> None:
    chat = start("talk")
    chat.wait_for("thinking on")
    chat.send("see ")
    chat.paste("\n".join(f"line {n}" for n in range(500)))
    chat.wait_for("› see [pasted 500 lines]")
    chat.send("\r")
    chat.wait_for("first token")
    assert "line 7" not in chat.text
    chat.send("/prompt\r")
    chat.wait_for("line 499")
    leave(chat)


def test_a_word_for_a_paste_goes_as_a_whole(start: Start) -> None:
    chat = start("talk")
    chat.wait_for("thinking on")
    chat.send("see ")
    chat.paste("line\n" * 20)
    chat.wait_for("› see [pasted 20 lines]")
    chat.send("\x7f")
    chat.wait_for(lambda text: "pasted" not in text)
    chat.paste("line\n" * 20)
    chat.wait_for("› see [pasted 20 lines]")
    chat.send("\x1b[D" * 5 + "\x1b[3~now")  # Delete, inside it
    chat.wait_for("› see now")
    chat.send(" [pasted 9 lines]\r")
    chat.wait_for("[pasted 9 lines] stands for no pasted text, and is sent as it is.")
    chat.wait_for("Hello you.")
    leave(chat)


def test_pastes_are_whole_wherever_the_line_goes(start: Start, tmp_path: Path) -> None:
    text = "\n".join(f"line {n}" for n in range(1, 13))
    chat = start("talk")
    chat.wait_for("thinking on")
    chat.send("/system ")
    chat.paste(text)
    chat.send("\r")
    chat.wait_for("The system message is set.")
    chat.send("/system\r")
    chat.wait_for("line 12")
    chat.send("look: ")
    chat.paste(text)
    chat.send("\r")
    chat.wait_for("first token")
    leave(chat)
    chat = start("talk")
    chat.wait_for("thinking on")
    chat.send("\x1b[A" + "\x1b[A")  # /quit was the newest
    chat.wait_for("  line 12\n")
    chat.send("\r")
    chat.wait_for("Hello you.")
    assert f"› look: {text}".replace("\n", "\n  ") in chat.text
    leave(chat)


def test_a_full_disk_costs_the_history_alone(start: Start) -> None:
    chat = start("talk", env={"GLMCHAT_TEST_LARGEST": "1"})
    chat.wait_for("thinking on")
    chat.send("hi\r")
    chat.wait_for("Hello you.")
    leave(chat)


def ask_for_weather(start: Start, **more: object) -> Terminal:
    chat = start("tools", **more)
    chat.send("weather?\r")
    chat.wait_for("Run get_weather?  y once")
    assert "⚙ get_weather\n  city: Oslo\n  $ python3 weather.py --city Oslo" in chat.text
    return chat


def test_a_call_is_asked_for_run_and_folded(start: Start) -> None:
    chat = ask_for_weather(start)
    chat.send("y\r")
    chat.wait_for("It is done.")
    assert re.search(r'▸ ⚙ get_weather\(city="Oslo"\) ✓ \d\.\d s\n\nIt is done', chat.text)
    assert "Run get_weather?" not in chat.text
    chat.send("\x14")
    chat.wait_for("°C, ")
    assert re.search(r"▾ ⚙ get_weather ✓ \d\.\d s\n  city: Oslo\n  \d+°C, ", chat.text)
    leave(chat)


def test_a_call_is_refused_with_a_reason(start: Start) -> None:
    chat = ask_for_weather(start)
    chat.send("not now\r")
    chat.wait_for("It is done.")
    assert '▸ ⚙ get_weather(city="Oslo") ✗ not allowed: not now' in chat.text
    leave(chat)


def test_the_arguments_of_a_call_are_changed(start: Start) -> None:
    chat = ask_for_weather(start)
    chat.send("e\r")
    chat.wait_for('› {"city": "Oslo"}')
    chat.send("\x01\x0bno\r")
    chat.wait_for(lambda text: text.count("Run get_weather?") == 1 and "The arguments;" not in text)
    chat.send("e\r")
    chat.wait_for('› {"city": "Oslo"}')
    chat.send("\x7f\r")  # without the brace at its end
    chat.wait_for("This is no JSON object")
    chat.send("\x7f" * 5 + 'Rome"}\r')
    chat.wait_for("It is done.")
    assert '▸ ⚙ get_weather(city="Rome") ✓' in chat.text
    leave(chat)


def test_what_was_being_typed_allows_nothing(start: Start) -> None:
    chat = start("tools", delay=0.01)
    chat.send("weather?\rye")
    chat.wait_for("Run get_weather?")
    chat.send("sterday was better\r")
    chat.wait_for("✗ not allowed: yesterday was better")
    assert "°C" not in chat.text
    chat.wait_for("It is done.")
    leave(chat)


@pytest.mark.parametrize("key", ["\x1b", "\x03"])
def test_stopping_is_a_no(start: Start, key: str) -> None:
    chat = ask_for_weather(start)
    chat.send(key)
    chat.wait_for("stopped")
    chat.wait_for(at_prompt)
    assert "°C" not in chat.text
    assert "Run get_weather?" not in chat.text
    leave(chat)


def test_ctrl_c_ends_a_tool_run(start: Start) -> None:
    chat = ask_for_weather(start)
    chat.send("s\r")
    chat.wait_for("It is done.")
    chat.send("wait\r")
    chat.wait_for("Run wait?")
    chat.send("y\r")
    chat.wait_for("⚙ wait(seconds=30) · ")
    chat.wait_for("\n  waiting\n")
    chat.send("\x03")
    chat.wait_for("▸ ⚙ wait(seconds=30) ✗ stopped by the person")
    chat.wait_for(at_prompt)
    assert "Never seen." not in chat.text
    leave(chat)


def test_leaving_ends_a_tool_that_will_not_end(start: Start) -> None:
    chat = ask_for_weather(start)
    chat.send("n\r")
    chat.wait_for("It is done.")
    chat.send("wait\r")
    chat.wait_for("Run wait?")
    chat.send("y\r")
    chat.wait_for("\n  waiting\n")
    leave(chat)
    assert "▸ ⚙ wait(seconds=30) ✗ stopped by the person" in chat.text
    assert running(STUBBORN) == []


def test_closing_the_terminal_ends_a_tool(start: Start) -> None:
    chat = ask_for_weather(start)
    chat.send("n\r")
    chat.wait_for("It is done.")
    chat.send("wait\r")
    chat.wait_for("Run wait?")
    chat.send("y\r")
    chat.wait_for("\n  waiting\n")
    chat.kill(signal.SIGHUP)
    assert chat.wait_end() == 143
    assert running(STUBBORN) == []


def running(code: str) -> list[str]:
    """Processes that run this code."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if code.encode() in entry.read_bytes().split(b"\0"):
                found.append(entry.parent.name)
    return found


def test_an_answer_taller_than_the_screen_is_whole_in_the_scrollback(start: Start) -> None:
    chat = start("long", delay=0.003, lines=12, columns=40)
    chat.send("list\r")
    chat.wait_for("first token")
    shown = [line.strip() for line in chat.lines if "item" in line]
    assert shown == [f"• item {n}" for n in range(1, 60)]
    leave(chat)


def test_a_fault_gives_the_question_back(start: Start) -> None:
    chat = start("fault")
    chat.send("my question\r")
    chat.wait_for("The context is full.")
    chat.wait_for(lambda text: text.count("› my question") == 2)
    chat.send("\r")
    chat.wait_for("Now it works.")
    leave(chat)


@pytest.mark.parametrize("typing", [True, False])
def test_a_model_that_cannot_load_ends_the_chat(start: Start, typing: bool) -> None:
    chat = start("broken", load_s=1.0)
    chat.wait_for("loading weights")
    chat.send("half" if typing else "asked\r")
    assert chat.wait_end() == 3
    assert "glmchat: The model is broken; fetch it again." in chat.text
    assert chat.modes_after == chat.modes
    assert not chat.cursor_hidden


def test_ctrl_c_while_the_model_loads_gives_the_prompt_back(start: Start) -> None:
    chat = start("talk", load_s=2.0)
    chat.send("early\r")
    chat.wait_for("loading weights")
    chat.wait_for("queued: early")
    chat.send("\x03")
    chat.wait_for(lambda text: "queued" not in text and "› early" in text)
    chat.send("\r")
    chat.wait_for("Hello you.")
    leave(chat)


@pytest.mark.parametrize("moment", ["prompt", "answer"])
def test_sigterm_restores_the_terminal(start: Start, moment: str) -> None:
    chat = start("slow", delay=0.01)
    chat.wait_for("thinking on")
    if moment == "answer":
        chat.send("go\r")
        chat.wait_for("Thinking")
    chat.kill(signal.SIGTERM)
    assert chat.wait_end() == 143
    assert chat.modes_after == chat.modes
    assert not chat.cursor_hidden
    assert b"Traceback" not in chat.raw


@pytest.mark.parametrize("moment", ["prompt", "answer"])
def test_a_terminal_that_is_closed(tmp_path: Path, moment: str) -> None:
    log = tmp_path / "log"
    words = [sys.executable, "-m", "tests.terminal.scripted_repl", "slow", "0.01", "0"]
    record = (
        "import signal, subprocess, sys; signal.signal(signal.SIGHUP, lambda *_: None)\n"
        f"with open({str(log)!r}, 'a', buffering=1) as log:\n"
        f"    code = subprocess.call({words!r}, stderr=log)\n"
        "    log.write(f'ended {code}\\n')\n"
    )
    with terminal(["-c", record], {"HOME": str(tmp_path)}) as chat:
        chat.wait_for("thinking on")
        if moment == "answer":
            chat.send("go\r")
            chat.wait_for("Thinking")
        chat.hang_up()
        ends = time.monotonic() + 20
        while "ended" not in log.read_text() and time.monotonic() < ends:
            time.sleep(0.05)
    assert log.read_text() == "ended 143\n"


def test_a_paste_that_begins_before_the_line_stands(start: Start) -> None:
    chat = start("talk")
    chat.wait_for("›")
    assert not at_prompt(chat.text), "that was not early"
    chat.send("\x1b[200~ab")
    chat.wait_for(at_prompt)
    chat.send("c\nd\x1b[201~")
    chat.wait_for("› abc\n  d")
    chat.send("\r")
    chat.wait_for("Hello you.")
    leave(chat)


def test_history_is_kept_and_private(start: Start, tmp_path: Path) -> None:
    chat = start("talk")
    chat.send("remember me\r")
    chat.wait_for("Hello you.")
    leave(chat)
    path = tmp_path / ".local/state/glmchat/history"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    chat = start("talk")
    chat.wait_for("thinking on")
    chat.send("\x1b[A\x1b[A")  # up past /quit
    chat.wait_for("› remember me")


@pytest.mark.parametrize("env", [{}, {"COLUMNS": "120", "LINES": "30"}])
def test_resizing_while_an_answer_comes(start: Start, env: dict[str, str]) -> None:
    chat = start("slow", delay=0.004, columns=120, lines=30, env=env)
    chat.send("go\r")
    chat.wait_for("word word")
    chat.resize(40, 30)
    chat.wait_for("first token")
    assert chat.text.count("▸ Thought") == 1
    assert chat.text.count("› go") == 1
    assert "Thinking" not in chat.text
    assert chat.text.count("word") == 400
    leave(chat)


def test_a_dumb_terminal_gets_lines_of_text(start: Start) -> None:
    chat = start("talk", env={"TERM": "dumb"})
    chat.wait_for("›")
    chat.send("hi\r")
    chat.wait_for("first token 0.25 s")
    assert "▸ Thought for 1.5 s · 3 tokens\n\nHello you." in chat.text
    assert b"\x1b" not in chat.raw
    chat.send("/quit\r")
    assert chat.wait_end() == 0


@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_a_checkpoint_without_an_end_is_told(start: Start, term: str) -> None:
    chat = start("talk", env={"TERM": term})
    chat.wait_for("›")
    chat.send("/model endless\r")
    chat.wait_for("endless names no token that ends an answer")
    chat.send("/quit\r")
    assert chat.wait_end() == 0


def test_a_dumb_terminal_shows_the_prompt_whatever_stderr_is(tmp_path: Path) -> None:
    words = f"{sys.executable} -m tests.terminal.scripted_repl talk 0 0 2> {tmp_path}/log"
    env = {"TERM": "dumb", "HOME": str(tmp_path)}
    with terminal(["-c", words], env, program="/bin/sh") as chat:
        chat.wait_for("›")
        chat.send("/quit\r")
        assert chat.wait_end() == 0
    assert (tmp_path / "log").read_text() == ""


def test_no_color(start: Start) -> None:
    chat = start("calls", env={"NO_COLOR": "1"})
    chat.send("weather?\r")
    chat.wait_for("not run")
    leave(chat)
    assert b"\x1b[36m" not in chat.raw
    assert not re.search(rb"\x1b\[[\d;]*\b(3\d|38;5;\d+)[;m]", chat.raw), "nor the lower edge"


def test_tools_on_a_dumb_terminal(start: Start) -> None:
    chat = start("tools", env={"TERM": "dumb"})
    chat.wait_for("›")
    chat.send("weather?\r")
    chat.wait_for("Run get_weather?  y once")
    chat.send("e\r")
    chat.wait_for("The arguments as they are to be:")
    chat.send('{"city": "Rome"}\r')
    chat.wait_for("It is done.")
    assert '▸ ⚙ get_weather(city="Rome") ✓' in chat.text
    assert b"\x1b" not in chat.raw
    chat.send("/quit\r")
    assert chat.wait_end() == 0


def test_ctrl_c_on_a_dumb_terminal(start: Start) -> None:
    chat = start("tools", env={"TERM": "dumb"})
    chat.wait_for("›")
    chat.send("weather?\r")
    chat.wait_for("Run get_weather?")
    chat.send("\x03")
    chat.wait_for("✗ not allowed: the person stopped the turn")
    chat.wait_for(lambda text: text.endswith("›"))
    chat.send("half\x03")
    chat.wait_for("Ctrl-C again leaves.")
    chat.wait_for(lambda text: text.endswith("›"))
    chat.send("\x03")
    assert chat.wait_end() == 0
    assert "°C" not in chat.text
