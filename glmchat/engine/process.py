"""A process of this program's own, at the other end of a socket pair: how it is started, and how it ended.

Both sides are this very program, so pickle meets nothing foreign.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection, Pipe

log = logging.getLogger(__name__)

ENDING_S = 10
"""How long a process may take to end: a decode step or prefill chunk of a large model, and its memory."""
# The path of this program, not the current folder, whose files must not be taken for modules.
_BOOT = (
    "import sys; sys.path[:] = sys.argv[2].split('\\n'); "
    "from importlib import import_module; import_module(sys.argv[3]).serve(int(sys.argv[1]))"
)


class Child:
    """Runs `serve(fd)` of a module of glmchat, which calls `connect(fd)`; deaf to Ctrl-C.

    `connection` leads to it. What it says on stdout and stderr is for `ended`, or the terminal with --debug.
    Raises OSError: the system gives no process.
    """

    def __init__(self, module: str, environ: Mapping[str, str] | None = None) -> None:
        debug = log.isEnabledFor(logging.DEBUG)
        with contextlib.ExitStack() as undo:
            self._said = undo.enter_context(tempfile.TemporaryFile())
            self.connection, theirs = Pipe()
            undo.callback(self.connection.close)
            with theirs, _no_ctrl_c():
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _BOOT, str(theirs.fileno()), "\n".join(sys.path), module],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=None if debug else self._said,
                    stderr=None if debug else subprocess.STDOUT,
                    env={**os.environ, **(environ or {})},
                )
            undo.pop_all()
        self.pid = self._process.pid
        with contextlib.suppress(OSError):  # it is gone already
            self.connection.send(debug)

    def end(self) -> None:
        """Wait until it has ended, which it was told before, and kill it if it does not."""
        try:
            self._process.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        self._process.kill()

    def ended(self) -> str:
        """Wait for its end: how that came, `was killed …`, and the last line that it said."""
        code = self._process.wait()
        if code == -signal.SIGKILL:
            how = "was killed, as the system does when memory runs out"
        elif code < 0:
            names = {number.value: number.name for number in signal.Signals}
            how = f"was ended by {names.get(-code, f'signal {-code}')}"
        else:
            how = f"ended with exit code {code}"
        self._said.seek(max(0, self._said.seek(0, os.SEEK_END) - 4096))
        said = self._said.read().decode("utf-8", "replace").split("\n")
        return how + next((f" ({line.strip()[:200]})" for line in reversed(said) if line.strip()), "")

    def close(self) -> None:
        """Let go of what leads to it."""
        self.connection.close()
        self._said.close()


def connect(fd: int) -> Connection:
    """In the child: the way to its parent."""
    os.set_inheritable(fd, False)
    connection = Connection(fd)
    if connection.recv():
        logging.basicConfig(level=logging.DEBUG)
    return connection


@contextlib.contextmanager
def _no_ctrl_c() -> Iterator[None]:
    """What is started inside never gets SIGINT: Ctrl-C goes to everyone in the terminal, but is for us."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
