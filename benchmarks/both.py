"""Both front ends on one loaded model, in turn: python -m benchmarks.both MODEL PROMPT TOKENS PAIRS FILE.

Runs in a pseudo-terminal, at which somebody types PROMPT and Ctrl-D in each conversation; the model runs in a
process of its own, as behind every conversation. Whole programs
differ by a tenth from one to the next, which is more than what is to be measured; within one they do not.
Writes the pairs of decode speeds, in tokens/s, to FILE as JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

from glmchat.chat import Chat
from glmchat.events import Timing
from glmchat.settings import NONE, Settings
from glmchat.terminal import jsonl, start, tty
from glmchat.terminal.app import App
from glmchat.terminal.progress import LoadState
from glmchat.terminal.screen import Looks

from .report import measure_pairs


def main(model: str, prompt: str, tokens: int, pairs: int, file: str) -> None:
    settings = Settings(
        model=model, device_map="cpu", greedy=True, max_tokens=tokens, tools=(NONE,), offline=True
    )
    load = LoadState()
    with start.open_chat(settings, load, apart=True) as chat:
        _ = chat.engine.info
        speeds = measure_pairs(lambda: in_terminal(chat, load), lambda: as_json(chat, prompt), pairs)
    Path(file).write_text(json.dumps(speeds), encoding="utf-8")


def in_terminal(chat: Chat, load: LoadState) -> float:
    chat.clear()
    return converse(chat, load).decode_tokens_per_s or 0.0


def converse(chat: Chat, load: LoadState) -> Timing:
    """Talk to whoever is at the terminal until they leave; the times of their last turn."""
    with tty.borrowed():
        app = App(chat, load, lambda _: chat.engine, Looks())
        app.run()
    return app.turns[-1].timing


def as_json(chat: Chat, prompt: str) -> float:
    chat.clear()
    with contextlib.redirect_stdout(io.StringIO()) as written:
        jsonl.run(chat, prompt, stream=False)
    return float(json.loads(written.getvalue())["timing"]["decode_tokens_per_s"])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
