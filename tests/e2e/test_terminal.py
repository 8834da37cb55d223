"""The real program with the bundled checkpoint, and a person at a pseudo-terminal."""

from __future__ import annotations

import re
from pathlib import Path

from ..pty import terminal


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
        chat.wait_for(lambda text: text.count("first token") == 2)
        assert chat.text.count("▸ Thought") == folded, "thinking off is obeyed"

        chat.send("Write a long list of words about the sea.\r\x03")
        chat.wait_for(lambda text: text.count("first token") == 3 or "stopped" in text)
        chat.send("\x03")  # clears what the stop gave back, if anything
        answers = chat.text.count("first token")
        chat.send("hi\r")
        chat.wait_for(lambda text: text.count("first token") > answers)

        chat.send("/quit\r")
        assert chat.wait_end() == 0
        assert chat.modes_after == chat.modes
        assert not chat.cursor_hidden
        assert b"Traceback" not in chat.raw
