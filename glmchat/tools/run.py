"""Runs one call in a process of its own, and leaves none behind: not at the end, a timeout or a cancel."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import IO, Any

from . import builtin
from .argv import Refused, argument_vector
from .builtin import command
from .declare import Cancelled, Run, Tool
from .output import Kept, OnLine, Outcome
from .sandbox import sandboxed

ENVIRONMENT = ("PATH", "HOME", "LANG", "TERM", "TZ")
"""What a tool sees of the environment, unless it declares more: no tokens, no keys."""

MARK = "GLMCHAT_CALL"
"""In the environment of each tool's processes; by it strays are found."""

_CHILD = Path(__file__).with_name("child.py")
_BUILTIN = Path(builtin.__file__).with_name("__main__.py")
_GRACE_S = 0.5
_POLL_S = 0.02


def command_of(tool: Tool, run: Run, arguments: dict[str, Any]) -> list[str]:
    """The exact argument vector, to be shown and to be run. Raises Refused."""
    folder = run.cwd or _current_folder()
    roots = run.roots or (folder,)
    needed = run.command
    if run.builtin:
        builtin.check(run.builtin, arguments, roots)
    if run.builtin == "run_command":
        words, folder = command.words(arguments["command"]), roots[0]
    elif run.builtin:
        config = {"roots": [str(r) for r in roots], "private": run.private, "max_output": run.max_output}
        words = [sys.executable, "-I", str(_BUILTIN), run.builtin, json.dumps(config)]
        needed = (sys.executable, str(_BUILTIN))
    elif run.python:
        words = [sys.executable, str(_CHILD), run.python, str(run.folder or folder)]
        needed = (*words[:2], words[3])
    else:
        words = argument_vector(tool, run, arguments)
    return sandboxed(words, folder, needed) if run.sandbox else words


def _current_folder() -> Path:
    try:
        return Path.cwd()
    except OSError:
        raise Refused("the folder that glmchat was started in was removed") from None


def run_call(
    tool: Tool,
    run: Run,
    arguments: dict[str, Any],
    *,
    cancelled: Cancelled = lambda: False,
    on_line: OnLine = lambda line: None,
) -> Outcome:
    """Run and wait. `on_line` gets the newest line of output now and then, from another thread.

    Never raises: whatever goes wrong is an Outcome.
    """
    started = time.monotonic()
    try:
        words = command_of(tool, run, arguments)
        with_json = run.stdin_json or run.python or (run.builtin and run.builtin != "run_command")
        data = json.dumps(arguments).encode() if with_json else None
    except Refused as e:
        return Outcome(f"The call was not run: {e}.", ok=False, note="refused")
    mark = uuid.uuid4().hex
    env = {name: os.environ[name] for name in (*ENVIRONMENT, *run.env) if name in os.environ}
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL if data is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=run.roots[0] if run.builtin and run.roots else run.cwd,
            env={**env, MARK: mark},
            start_new_session=True,
        )
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        what = getattr(e, "filename", None) or words[0]  # the folder to run it in, where that is not there
        return Outcome(f"The tool could not be started: {what}: {reason}.", ok=False, note="not started")
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = Kept(process.stdout, run.max_output, on_line), Kept(process.stderr, run.max_output, on_line)
    if data is not None:
        assert process.stdin is not None
        threading.Thread(target=_feed, args=(process.stdin, data), daemon=True).start()
    ends = started + run.timeout_s
    why = ""
    while process.poll() is None:
        if cancelled():
            why = "stopped by the person"
        elif time.monotonic() >= ends:
            why = f"timed out after {run.timeout_s:g} s"
        if why:
            break
        time.sleep(_POLL_S)
    out.wait(0 if why else _GRACE_S)
    err.wait(0 if why else _GRACE_S)
    _end(process, mark, gently=bool(why))
    out.close(_GRACE_S)
    err.close(_GRACE_S)
    return _outcome(process.returncode, out.text(), err.text(), why, time.monotonic() - started)


def _outcome(code: int, out: str, err: str, why: str, seconds: float) -> Outcome:
    if not why and code == 0 and not err.strip():
        return Outcome(out, ok=True, seconds=seconds)
    told: dict[str, Any] = {"exit_code": code, "stdout": out, "stderr": err}
    if why:
        told = {"error": f"The tool was ended: {why}.", "stdout": out, "stderr": err}
    note = why or (f"exit code {code}" if code > 0 else f"ended by signal {-code}" if code else "")
    return Outcome(json.dumps(told, ensure_ascii=False), ok=not note, note=note, seconds=seconds)


def _feed(pipe: IO[bytes], data: bytes) -> None:
    """Write all of it, or as much as the process wants."""
    with contextlib.suppress(OSError, ValueError):
        pipe.write(data)
    with contextlib.suppress(OSError, ValueError):
        pipe.close()


def _end(process: subprocess.Popen[bytes], mark: str, *, gently: bool) -> None:
    """No process of the call is left: its group, and what left its group but has the mark."""
    if gently:
        _signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    _signal_group(process.pid, signal.SIGKILL)
    end_strays(mark)
    process.wait()


def end_strays(mark: str) -> None:
    """End every process that has the mark in its environment, however far it went from who started it."""
    for pid in _marked(mark):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(group, number)


def _marked(mark: str) -> list[int]:
    """The processes with this mark (where there is a /proc)."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
    return found
