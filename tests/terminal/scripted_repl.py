"""The REPL on a scripted engine, for tests in a pseudo-terminal.

python -m tests.terminal.scripted_repl NAME DELAY LOAD_SECONDS
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading

from glmchat import cli
from glmchat.chat import Chat
from glmchat.engine.base import ModelInfo
from glmchat.errors import ContextFullError, ModelError
from glmchat.events import LoadProgress
from glmchat.messages import ToolCall
from glmchat.terminal import start
from glmchat.terminal.progress import LoadState
from glmchat.tools.declare import Run, Tool
from glmchat.tools.reading import read_declarations

from ..pty import ROOT
from ..scripted import Script, ScriptedEngine, turn

TOOLS = [
    {"name": "get_weather", "description": "Weather of a place.", "parameters": {"properties": {"city": {}}}}
]
LIST = "\n".join(f"- item {n}" for n in range(1, 60))

SCRIPTS: dict[str, list[Script]] = {
    "talk": [turn("Hello **you**.", thinking="They greet me."), turn("Second answer.")],
    "slow": [turn("word " * 400, thinking="hm " * 100), turn("Quick one.")],
    "long": [turn(f"{LIST}\n\nThe end.")],
    "fault": [[ContextFullError("The context is full.")], turn("Now it works.")],
    "calls": [turn("", calls=[ToolCall("get_weather", {"city": "Oslo"})], reason="tool_calls")],
    "tools": [
        turn("I look.", calls=[ToolCall("get_weather", {"city": "Oslo"})], reason="tool_calls"),
        turn("It is done."),
        turn("", calls=[ToolCall("wait", {"seconds": 30})], reason="tool_calls"),
        turn("Never seen."),
    ],
    "broken": [],
}

STUBBORN = (
    "import signal, sys, time; signal.signal(15, signal.SIG_IGN); print('waiting', flush=True); "
    "time.sleep(float(sys.argv[1]))"
)
RUN = (
    *read_declarations(str(ROOT / "examples" / "weather" / "tools.json")).tools,
    Tool(
        {
            "type": "function",
            "function": {"name": "wait", "parameters": {"properties": {"seconds": {"type": "number"}}}},
        },
        Run(command=(sys.executable, "-c", STUBBORN, "{seconds}")),
    ),
)


class LateEngine(ScriptedEngine):
    """Its model takes a while to load, or never does."""

    def __init__(self, *scripts: Script, delay: float, load_s: float, fault: Exception | None) -> None:
        self._ready = threading.Event()
        self._fault = fault
        threading.Timer(load_s, self._ready.set).start()
        super().__init__(*scripts, delay=delay)

    @property
    def info(self) -> ModelInfo:
        self._ready.wait()
        if self._fault is not None:
            raise self._fault
        return self._info

    @info.setter
    def info(self, value: ModelInfo) -> None:
        self._info = value


def main(name: str, delay: float, load_s: float) -> int:
    refused: set[str] = set()

    def open_chat(settings: object, load: LoadState, *, apart: bool) -> Chat:
        load(LoadProgress("loading weights", 3 * 10**9, 4 * 10**9, 2, 5))
        fault = ModelError("The model is broken; fetch it again.") if name == "broken" else None
        engine = LateEngine(*SCRIPTS[name], delay=delay, load_s=load_s, fault=fault)
        return Chat(engine, tools=RUN if name == "tools" else TOOLS if name == "calls" else ())

    def open_engine(settings: object, model: str, load: LoadState, *, apart: bool) -> LateEngine:
        if model in ("crowded", "full"):
            refused.add(model)
        if model == "crowded" or "full" in refused:
            if model == "at last":
                refused.clear()
            else:
                raise ModelError(f"A process for {model} cannot be started; end other programs first.")
        fault = ModelError(f"{model} is no model.") if model == "nonsense" else None
        engine = LateEngine(turn(f"I am {model}."), delay=delay, load_s=load_s, fault=fault)
        engine.info = ModelInfo(model, "cpu", ends=model != "endless")
        return engine

    start.open_chat = open_chat  # type: ignore[assignment]
    start.open_engine = open_engine  # type: ignore[assignment]
    return cli.main([])


if __name__ == "__main__":
    if largest := os.environ.get("GLMCHAT_TEST_LARGEST"):  # bytes of a file, as where the disk is full
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest),) * 2)
    sys.exit(main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3])))
