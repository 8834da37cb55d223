"""Real processes: what they get, what they give, and that none is left."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from glmchat.tools.argv import LONGEST_WORD, Refused, argument_vector
from glmchat.tools.declare import Run, Tool
from glmchat.tools.run import run_call

PY = sys.executable


def tool(properties: str = "a b c") -> Tool:
    names = {name: {} for name in properties.split()}
    return Tool({"type": "function", "function": {"name": "t", "parameters": {"properties": names}}})


def python(code: str, **more: Any) -> Run:
    return Run(command=(PY, "-c", code), **more)


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        ("x --city {a}", {"a": "New York"}, ["x", "--city", "New York"]),
        ("x --city {a} {b}", {"b": "z"}, ["x", "z"]),
        ("x -- {a}", {}, ["x", "--"]),
        ("x {a}", {"a": ["1", "2 3"]}, ["x", "1", "2 3"]),
        ("x --n {a}", {"a": []}, ["x"]),
        ("x --n {a}", {"a": ["-1", "2"]}, ["x", "--n", "-1", "2"]),
        ("x -- {a} {b}", {"a": "-1", "b": "-2"}, ["x", "--", "-1", "-2"]),
        ("x {a} {b}", {"a": -5}, ["x", "-5"]),
        ("x {a} {b} {c}", {"a": 5, "b": True, "c": {"k": "ü"}}, ["x", "5", "true", '{"k": "ü"}']),
        ("x {a}", {"a": -5}, ["x", "-5"]),
        ("x {unknown}", {}, ["x", "{unknown}"]),
        # Hostile ones: each stays one word, as it is.
        ("x {a}", {"a": "; rm -rf /"}, ["x", "; rm -rf /"]),
        ("x {a}", {"a": "$(reboot) `id` && | > f"}, ["x", "$(reboot) `id` && | > f"]),
        ("x {a}", {"a": "one\ntwo"}, ["x", "one\ntwo"]),
        ("x {a}", {"a": "{b}", "b": "never"}, ["x", "{b}"]),
        ("x --city {a}", {"a": "--help"}, ["x", "--city", "--help"]),
        ("x -- {a}", {"a": "--help"}, ["x", "--", "--help"]),
    ],
)
def test_argument_vectors(command: str, arguments: dict[str, Any], words: list[str]) -> None:
    assert argument_vector(tool(), Run(command=tuple(command.split())), arguments) == words


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("--output=/etc/passwd", "read as an option"),
        ("-rf", "read as an option"),
        (["fine", "--flag"], "read as an option"),
        ("a\0b", "NUL"),
        ("\ud800", "surrogate"),
        ("x" * (LONGEST_WORD + 1), "bytes long"),
        ("x" * 1_000_000, "bytes long"),
    ],
)
def test_what_no_command_line_should_hold_is_refused(value: Any, says: str) -> None:
    run = Run(command=("touch", "{a}"))
    with pytest.raises(Refused, match=says):
        argument_vector(tool(), run, {"a": value})
    outcome = run_call(tool(), run, {"a": value})
    assert not outcome.ok
    assert says in outcome.text


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("x --n {a} {b}", {"a": "1", "b": "--evil"}),
        ("x --n {a} {b}", {"b": "--evil"}),
        ("x --n {a}", {"a": ["1", "--evil"]}),
        ("x --n {a} {b}", {"a": "--", "b": "--evil"}),
        ("x --n {a} {b}", {"a": "-1", "b": "--evil"}),
        ("x {a} {b}", {"a": -1, "b": "--evil"}),
    ],
)
def test_no_argument_makes_an_option_of_another(command: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="read as an option: '--evil'"):
        argument_vector(tool(), Run(command=tuple(command.split())), arguments)


def test_the_longest_word_can_be_run() -> None:
    outcome = run_call(
        tool(), Run(command=("printf", "%s", "{a}"), max_output=10**6), {"a": "x" * LONGEST_WORD}
    )
    assert outcome.text == "x" * LONGEST_WORD


def test_a_run_that_goes_well_gives_its_output_alone() -> None:
    outcome = run_call(tool(), python("print('sunny, 18°C')"), {})
    assert (outcome.text, outcome.ok, outcome.note) == ("sunny, 18°C\n", True, "")


def test_exit_code_and_both_streams_are_told_apart() -> None:
    outcome = run_call(
        tool(), python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"), {}
    )
    assert json.loads(outcome.text) == {"exit_code": 3, "stdout": "out\n", "stderr": "err\n"}
    assert (outcome.ok, outcome.note) == (False, "exit code 3")


def test_arguments_come_as_json_on_stdin() -> None:
    run = python("import sys, json; print(json.load(sys.stdin)['a'][::-1])", stdin_json=True)
    assert run_call(tool(), run, {"a": "\0ä"}).text == "ä\0\n", (
        "what no command line can hold is no matter here"
    )
    assert run_call(tool(), run, {"a": "abc"}).text == "cba\n"


def test_a_python_function(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def double(a, b=2):\n    return {'n': a * b}\ndef bad():\n    1 / 0\n")
    assert run_call(tool(), Run(python="mine:double", folder=tmp_path), {"a": 4}).text == '{"n": 8}'
    failed = run_call(tool(), Run(python="mine:bad", folder=tmp_path), {})
    assert not failed.ok
    assert "ZeroDivisionError" in failed.text
    assert "no_such" in run_call(tool(), Run(python="mine:no_such", folder=tmp_path), {}).text


def test_a_program_that_is_not_there() -> None:
    outcome = run_call(tool(), Run(command=("no-such-program",)), {})
    assert outcome.text == "The tool could not be started: no-such-program: No such file or directory."


def test_a_folder_that_is_not_there_any_more(tmp_path: Path) -> None:
    outcome = run_call(tool(), python("print(1)", cwd=tmp_path / "gone"), {})
    assert outcome.text == f"The tool could not be started: {tmp_path / 'gone'}: No such file or directory."


def test_the_environment_holds_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("MY_SETTING", "wanted")
    shown = run_call(tool(), python("import os; print(dict(os.environ))", env=("MY_SETTING",)), {}).text
    assert "secret" not in shown
    assert "wanted" in shown


def test_a_gigabyte_of_output_is_cut_in_the_middle() -> None:
    code = "print('begin', end='')\nfor _ in range(1000): print('x' * 10**6, end='')\nprint('end')"
    before = _resident()
    outcome = run_call(tool(), python(code, timeout_s=120), {})
    assert outcome.text.startswith("begin")
    assert outcome.text.endswith("end\n")
    assert "bytes are left out here" in outcome.text
    assert len(outcome.text) < 70_000
    assert _resident() - before < 50 * 2**20


HOSTILE = {
    "never reads stdin": "import time; time.sleep(60)",
    "ignores SIGTERM": "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)",
    "forks children that ignore SIGTERM": (
        "import os, signal, time\nsignal.signal(15, signal.SIG_IGN)\nfor _ in range(3): os.fork()\n"
        "time.sleep(60)"
    ),
    "closes stdout and lives on": "import os, time; os.close(1); os.close(2); time.sleep(60)",
    "leaves its group": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(60)\n"
        "    os._exit(0)\n"
        "time.sleep(60)"
    ),
}


@pytest.mark.parametrize("code", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("way", ["timeout", "cancel"])
def test_no_process_is_left(code: str, way: str) -> None:
    cancelled = threading.Event()
    if way == "cancel":
        threading.Timer(0.6, cancelled.set).start()
    run = python(code, timeout_s=0.6 if way == "timeout" else 50.0, stdin_json=True)
    started = time.monotonic()
    outcome = run_call(tool(), run, {"a": "x" * 10**6}, cancelled=cancelled.is_set)
    assert time.monotonic() - started < 20
    assert not outcome.ok
    assert ("timed out after 0.6 s" if way == "timeout" else "stopped by the person") in outcome.text
    assert _alive(code) == []


def test_what_a_call_leaves_running_is_ended() -> None:
    inner = "[sys.executable, '-c', 'import time; time.sleep(61)']"
    code = f"import subprocess, sys; subprocess.Popen({inner}); print('ok')"
    assert run_call(tool(), python(code), {}).text == "ok\n"
    assert _alive("import time; time.sleep(61)") == []


def test_the_newest_line_is_told_while_it_runs() -> None:
    lines: list[str] = []
    code = "import time\nfor n in range(3): print('line', n, flush=True); time.sleep(0.2)"
    run_call(tool(), python(code), {}, on_line=lines.append)
    assert lines[0] == "line 0"
    assert "line 2" in lines


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _alive(code: str) -> list[str]:
    """Processes that run this code; those that are dead and only not yet waited for do not count."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (
                code.encode() in (entry / "cmdline").read_bytes()
                and " Z " not in (entry / "stat").read_text()
            ):
                found.append(entry.name)
        except OSError:
            continue
    return found
