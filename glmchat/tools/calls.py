"""The calls of one round: checked, allowed or not, and run side by side. Everything that can go wrong is a
result for the model, which may try again."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from queue import SimpleQueue
from typing import TypeAlias

from ..events import ToolDone, ToolOutput, ToolStarted
from ..messages import ToolCall
from .approve import Approvals, No, Request
from .argv import Refused
from .check import argument_faults
from .declare import Cancelled, Remote, Run, Tool
from .output import Outcome
from .run import command_of, run_call

Event: TypeAlias = ToolStarted | ToolOutput | ToolDone

SAME_IN_A_ROW = 3


class Repeats:
    """Notices a model that makes the same call again and again."""

    def __init__(self) -> None:
        self._newest = ""
        self._count = 0

    def add(self, calls: Sequence[ToolCall]) -> bool:
        """Take in a round's calls; whether one stands there for the third time in a row."""
        for call in calls:
            this = json.dumps([call.name, call.arguments], sort_keys=True)
            self._count = self._count + 1 if this == self._newest else 1
            self._newest = this
            if self._count >= SAME_IN_A_ROW:
                return True
        return False


def run_calls(
    calls: Sequence[ToolCall], tools: Sequence[Tool], approvals: Approvals, cancel: threading.Event
) -> Iterator[Event]:
    """Ask for each call in turn, then run those that were allowed. A ToolDone comes for every call, unless
    `cancel` is set before it was asked for."""
    known = {tool.name: tool for tool in tools}
    ready: list[tuple[ToolCall, Tool, Run | Remote]] = []
    for call in calls:
        if cancel.is_set():
            return
        tool = known.get(call.name)
        if tool is None or tool.run is None:
            names = ", ".join(known) or "none"
            yield _not_run(call, f"There is no tool {call.name!r}; there are: {names}.", "no such tool")
            continue
        checked = _allowed(call, tool, tool.run, approvals)
        if isinstance(checked, ToolDone):
            yield checked
        else:
            ready.append((checked, tool, tool.run))
    yield from _side_by_side(ready, cancel)


def _allowed(call: ToolCall, tool: Tool, run: Run | Remote, approvals: Approvals) -> ToolCall | ToolDone:
    """The call as it is to be run, or why it is not."""
    words = _checked(call, tool, run)
    if isinstance(words, ToolDone):
        return words
    answer = approvals.decide(Request(tool, call, words))
    if isinstance(answer, No):
        because = f": {answer.reason}" if answer.reason else ""
        return _not_run(call, f"The person did not allow this call{because}.", f"not allowed{because}")
    if answer.arguments is None:
        return call
    changed = replace(call, arguments=answer.arguments)
    refused = _checked(changed, tool, run)
    return refused if isinstance(refused, ToolDone) else changed


def _checked(call: ToolCall, tool: Tool, run: Run | Remote) -> tuple[str, ...] | ToolDone:
    """The argument vector, where there is one; or why the arguments are not what the tool declares, or cannot
    be run."""
    if faults := argument_faults(tool, call.arguments):
        return _not_run(call, f"The arguments are not what {tool.name} takes: {faults}.", "bad arguments")
    if isinstance(run, Remote):
        return ()
    try:
        return tuple(command_of(tool, run, call.arguments))
    except Refused as e:
        return _not_run(call, f"The call was not run: {e}.", "bad arguments")


def _not_run(call: ToolCall, text: str, note: str) -> ToolDone:
    return ToolDone(call, text, ok=False, note=note)


def _side_by_side(
    ready: list[tuple[ToolCall, Tool, Run | Remote]], cancel: threading.Event
) -> Iterator[Event]:
    events: SimpleQueue[Event] = SimpleQueue()
    ended = threading.Event()  # whoever reads has gone
    threads = []
    for call, tool, run in ready:
        yield ToolStarted(call)
        work = _worker(call, tool, run, events.put, lambda: cancel.is_set() or ended.is_set())
        threads.append(threading.Thread(target=work, name=f"glmchat-tool-{tool.name}", daemon=True))
    try:
        for thread in threads:
            thread.start()
        waiting = len(threads)
        while waiting:
            event = events.get()
            waiting -= isinstance(event, ToolDone)
            yield event
    finally:
        ended.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()


def _worker(
    call: ToolCall, tool: Tool, run: Run | Remote, put: Callable[[Event], None], cancelled: Cancelled
) -> Callable[[], None]:
    def work() -> None:
        try:
            if isinstance(run, Remote):
                outcome = run.call(run.tool, call.arguments, cancelled)
            else:
                outcome = run_call(
                    tool,
                    run,
                    call.arguments,
                    cancelled=cancelled,
                    on_line=lambda line: put(ToolOutput(call.id, line)),
                )
        except Exception as e:  # nobody else would hear of it, and the reader would wait for ever
            outcome = Outcome(f"The tool could not be run: {e}", ok=False, note="not run")
        put(ToolDone(call, outcome.text, outcome.ok, outcome.note, outcome.seconds))

    return work
