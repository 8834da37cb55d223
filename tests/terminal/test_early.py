"""The prompt that stands while the rest is imported, in a real pseudo-terminal."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from glmchat.terminal.early import GREETING

from ..pty import Terminal, terminal

PROGRAM = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
from glmchat.terminal import early, say

def wait():
    while signal.sigtimedwait({signal.SIGUSR1}, 0.05) is None:
        pass

print("begun", flush=True)
with early.stand(thinks=True) as standing:
    if standing is None:
        print("none")
        raise SystemExit
    wait()
    %s
    print(f"kept {standing.end()!a}", end="\\r\\n", flush=True)
"""

Start = Callable[..., Terminal]


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:

        def begin(then: str = "pass", **more: object) -> Terminal:
            made = stack.enter_context(terminal(["-c", PROGRAM % then], **more))  # type: ignore[arg-type]
            made.wait_for(lambda text: "›" in text or "none" in text)
            return made

        yield begin


def take_over(early: Terminal) -> str:
    """Go on, to the end; what it kept, as Python writes it."""
    early.kill(signal.SIGUSR1)
    assert early.wait_end() == 0
    assert early.modes_after == early.modes
    (kept,) = (line for line in early.lines if line.startswith("kept "))
    assert "›" not in early.text, "nothing is left of it"
    assert GREETING not in early.text
    return kept.removeprefix("kept ")


def test_text_is_shown_and_kept(start: Start) -> None:
    early = start()
    assert early.text == f"begun\n{GREETING}\n\n›"
    early.send("hällo 世x")
    early.wait_for("› hällo 世x")
    early.send("\x7f\x7fé")
    early.wait_for(lambda text: text.endswith("› hällo é"))
    assert take_over(early) == ascii("hällo 世x\x7f\x7fé")


def test_nothing_is_left_before_the_first_key_that_is_no_text(start: Start) -> None:
    """Enter, an arrow, a paste: what they do, the conversation's own line does."""
    early = start()
    keys = "ab\x1b[Dc\rd"
    early.send(keys)
    early.wait_for("› ab")
    assert take_over(early) == ascii(keys)
    assert "abc" not in early.text


def test_deleting_what_is_not_there(start: Start) -> None:
    early = start()
    early.send("\x7f\x7fx")
    early.wait_for("› x")
    assert take_over(early) == ascii("\x7f\x7fx")


@pytest.mark.parametrize("columns", [80, 20])
def test_no_row_is_wrapped(start: Start, columns: int) -> None:
    """In few columns there is no greeting."""
    early = start(columns=columns)
    early.send("é" * 100 + "\x04")
    early.wait_for("› " + "é" * (columns // 2 - 3))
    assert (GREETING in early.text) == (columns == 80)
    assert len(early.text.splitlines()) == (4 if columns == 80 else 2)
    early.kill(signal.SIGUSR1)
    assert early.wait_end() == 0
    assert "".join(early.lines).count("\\xe9") == 100


def test_what_was_typed_for_a_cooked_terminal(start: Start) -> None:
    """Before there was a prompt, Enter gave a newline and Ctrl-D a NUL."""
    with terminal(["-c", "import time; time.sleep(0.5)\n" + PROGRAM % "pass"]) as early:
        early.send("ab\rcd")
        early.wait_for("› ab")
        assert take_over(early) == ascii("ab\rcd")


def test_what_is_said_goes_above(start: Start) -> None:
    early = start("say.say('a word'); wait()")
    early.send("ab")
    early.wait_for("› ab")
    early.kill(signal.SIGUSR1)
    early.wait_for(f"glmchat: a word\n{GREETING}\n\n› ab")
    assert early.text == f"begun\nglmchat: a word\n{GREETING}\n\n› ab", "it stands once"
    early.send("c")
    early.wait_for("› abc")
    assert take_over(early) == ascii("abc")


def test_what_was_typed_before_is_no_answer(start: Start) -> None:
    early = start("with say.beside(): print(f'heard {input(\"Sure? \")}')\n    wait()")
    early.send("yes\r")
    early.wait_for("› yes")
    early.kill(signal.SIGUSR1)
    early.wait_for("Sure?")
    early.send("no\r")
    early.wait_for("heard no")
    early.wait_for("› yes")
    early.send("!")
    assert take_over(early) == ascii("yes\r!")


def test_ctrl_c_leaves_nothing(start: Start) -> None:
    early = start()
    early.send("ab")
    early.wait_for("› ab")
    early.send("\x03")
    assert early.wait_end() != 0
    assert early.modes_after == early.modes
    assert early.raw.rfind(b"\x1b[?2004l") > early.raw.rfind(b"\x1b[?2004h")
    assert "›" not in early.text


def test_none_on_a_dumb_terminal(start: Start) -> None:
    early = start(env={"TERM": "dumb"})
    assert early.wait_end() == 0
    assert b"\x1b" not in early.raw
