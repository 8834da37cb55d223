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
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .argv import Refused, argument_vector
from .declare import Run, Tool

ENVIRONMENT = ("PATH", "HOME", "LANG", "TERM", "TZ")
"""What a tool sees of the environment, unless it declares more: no tokens, no keys."""

_CHILD = Path(__file__).with_name("child.py")
_MARK = "GLMCHAT_CALL"  # in the environment of each tool's processes, by which strays are found
_GRACE_S = 0.5
_POLL_S = 0.02
_TELL_S = 0.1
_CHUNK = 65536
_LONGEST_LINE = 500

OnLine = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a call: the text that the model reads, and for people whether it went well, and how."""

    text: str
    ok: bool
    note: str = ""
    """`exit code 2`, `timed out after 30 s`; "" when all went well."""
    seconds: float = 0.0


def command_of(tool: Tool, run: Run, arguments: dict[str, Any]) -> list[str]:
    """The exact argument vector, to be shown and to be run. Raises Refused."""
    if run.python:
        return [sys.executable, str(_CHILD), run.python, str(run.folder or Path.cwd())]
    return argument_vector(tool, run, arguments)


def run_call(
    tool: Tool,
    run: Run,
    arguments: dict[str, Any],
    *,
    cancelled: Callable[[], bool] = lambda: False,
    on_line: OnLine = lambda line: None,
) -> Outcome:
    """Run and wait. `on_line` gets the newest line of output now and then, from another thread.

    Never raises: whatever goes wrong is an Outcome.
    """
    started = time.monotonic()
    try:
        words = command_of(tool, run, arguments)
        with_json = run.stdin_json or run.python
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
            cwd=run.cwd,
            env={**env, _MARK: mark},
            start_new_session=True,
        )
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        return Outcome(f"The tool could not be started: {words[0]}: {reason}.", ok=False, note="not started")
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = _Kept(process.stdout, run.max_output, on_line), _Kept(process.stderr, run.max_output, on_line)
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


class _Kept:
    """Reads a pipe to its end in a thread and keeps its beginning and its end, so that memory stays flat."""

    def __init__(self, pipe: IO[bytes], most: int, on_line: OnLine) -> None:
        self._pipe = pipe
        self._room = most // 2
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self._total = 0
        self._on_line = on_line
        self._told = 0.0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> None:
        self._thread.join(seconds)

    def close(self, seconds: float) -> None:
        """Wait for the end; a pipe that somebody else still holds is left to its thread."""
        self._thread.join(seconds)
        if not self._thread.is_alive():
            self._pipe.close()

    def text(self) -> str:
        head, tail = bytes(self._head), b"".join(self._tail)[-self._room :]
        cut = self._total - len(head) - len(tail)
        if cut <= 0:
            return (head + tail).decode(errors="replace")
        between = f"\n[{cut:,} bytes are left out here]\n"
        return head.decode(errors="ignore") + between + tail.decode(errors="ignore")

    def _read(self) -> None:
        fd = self._pipe.fileno()
        with contextlib.suppress(OSError, ValueError):
            while chunk := os.read(fd, _CHUNK):
                self._total += len(chunk)
                now = time.monotonic()
                if now - self._told < _TELL_S:
                    pass
                elif lines := chunk[-_LONGEST_LINE:].decode(errors="replace").strip().splitlines():
                    self._told = now
                    self._on_line(lines[-1])
                room = self._room - len(self._head)
                self._head += chunk[:room]
                self._keep(chunk[room:])

    def _keep(self, chunk: bytes) -> None:
        if not chunk:
            return
        self._tail.append(chunk)
        self._tail_size += len(chunk)
        while self._tail_size - len(self._tail[0]) >= self._room:
            self._tail_size -= len(self._tail.popleft())


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
    for pid in _marked(mark):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(group, number)


def _marked(mark: str) -> list[int]:
    """The processes that were started by this call, however far they went (where there is a /proc)."""
    wanted = f"{_MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
    return found
