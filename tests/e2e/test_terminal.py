"""The real program with the bundled checkpoint, and a person at a pseudo-terminal."""

from __future__ import annotations

import re
from pathlib import Path

from ..pty import at_prompt, terminal


def ended(text: str) -> int:
    """How many turns ended, whole or stopped."""
    return text.count("first token") + text.count("\nstopped\n")


def test_a_conversation(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path), "XDG_STATE_HOME": "", "XDG_CONFIG_HOME": "", "GLMCHAT_MODEL": ""}
    with terminal(["-m", "glmchat", "--greedy"], env) as chat:
        chat.wait_for("bundled demo")
        chat.wait_for("thinking on", timeout=10)
        chat.send("What is 21 + 14?\r")  # typed before the model is there
        chat.wait_for("first token")
        assert re.search(r"▸ Thought for \d+\.\d s · \d+ tokens?\n\n.*\S", chat.text), chat.text
        assert re.search(r"\d+ tokens · \d[\d.,]* tokens/s · first token \d+\.\d\d s", chat.text)
        assert "<think>" not in chat.text
        chat.wait_for("demo · cpu · thinking on")

        before = chat.text.count("▾")
        chat.send("\x14")
        chat.wait_for(lambda text: text.count("▾") > before)

        chat.send("/think off\r")
        chat.wait_for("thinking off")
        folded = chat.text.count("▸ Thought")
        chat.send("hello\r")
        chat.wait_for(lambda text: text.count("first token") == 2 and at_prompt(text))
        assert chat.text.count("▸ Thought") == folded, "thinking off is obeyed"

        chat.send("/think on\r")
        chat.wait_for(lambda text: "Thinking is on." in text and at_prompt(text))
        for attempt in range(8):  # a model this small can end its answer before the key arrives
            turns = ended(chat.text)
            chat.send(f"What is 9876543{attempt} + 87654321?\r")
            chat.wait_for(lambda text, turns=turns: "▾ Thinking" in text or ended(text) > turns)
            chat.send("\x03")
            chat.wait_for(lambda text, turns=turns: ended(text) > turns and at_prompt(text))
            if "\nstopped\n" in chat.text:
                break
        else:
            raise AssertionError(f"no answer could be stopped:\n{chat.text}")
        chat.send("x\x03")  # a draft, should the stop have given the question back, is cleared
        answers = chat.text.count("first token")
        chat.send("hi\r")
        chat.wait_for(lambda text: text.count("first token") > answers)
        chat.wait_for(at_prompt)

        chat.send("/quit\r")
        assert chat.wait_end() == 0
        assert chat.modes_after == chat.modes
        assert not chat.cursor_hidden
        assert b"Traceback" not in chat.raw
