from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from glmchat import cli
from glmchat.chat import Chat
from glmchat.errors import EXIT_USAGE, ContextFullError, ModelError
from glmchat.events import AnswerDelta, PromptReady
from glmchat.messages import ToolCall
from glmchat.settings import Settings, flag, table
from glmchat.terminal import plain, start, stdin

from .scripted import Script, ScriptedEngine, turn

ROOT = Path(__file__).resolve().parent.parent
WEATHER = ROOT / "examples" / "weather" / "tools.json"


class Run(SimpleNamespace):
    """What one run gave: code, out, err; and the engine and the Settings it had."""

    code: int
    out: str
    err: str
    engine: ScriptedEngine
    settings: Settings


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Run]:
    """Run the program in this process, with a scripted engine in place of a model."""
    for name in [n for n in os.environ if n.startswith("GLMCHAT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)

    def go(*words: str, script: Script | Exception = (), piped: bytes | None = None) -> Run:
        engine = ScriptedEngine([script] if isinstance(script, Exception) else script)
        seen: dict[str, Any] = {}

        def open_chat(settings: Settings, on_progress: object = None) -> Chat:
            seen["settings"] = settings
            return start.make_chat(settings, lambda: engine)

        monkeypatch.setattr(start, "open_chat", open_chat)
        read, write = os.pipe()
        os.write(write, piped or b"")
        os.close(write)
        with os.fdopen(read) as source:
            monkeypatch.setattr(sys, "stdin", source)
            code = cli.main(list(words))
        out, err = capfd.readouterr()
        return Run(code=code, out=out, err=err, engine=engine, **seen)

    return go


def test_an_unknown_variable_is_said_beside_the_answer(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLMCHAT_MODLE", "x")
    result = run("--json", "hi", script=turn("Hello"))
    assert (result.code, json.loads(result.out)["message"]["content"]) == (0, "Hello")
    assert result.err.count("\n") == 1
    assert "GLMCHAT_MODLE is unknown, and ignored; did you mean GLMCHAT_MODEL?" in result.err


def test_a_prompt_gives_the_answer_and_nothing_else(run: Callable[..., Run]) -> None:
    result = run("--", "hi", script=turn("Hello there", thinking="secret"))
    assert (result.code, result.out, result.err) == (0, "Hello there\n", "")
    assert result.engine.seen[0][0].messages[-1].content == "hi"
    assert result.engine.closed


@pytest.mark.parametrize(
    ("words", "piped", "prompt"),
    [
        (["summarise"], b"line one\nline two\n", "line one\nline two\n\nsummarise"),
        ([], b"hi\n", "hi"),
        (["only"], b"", "only"),
        (["only"], b" \n", "only"),
        (["--", "-5 + 3"], b"", "-5 + 3"),
        (["--", "bench"], b"", "bench"),
        ([], "\ufeffmit BOM ü\r\n".encode(), "mit BOM ü\r"),
        ([], b"  indented\n", "  indented"),
        ([" keep me \n"], b"", " keep me \n"),
    ],
)
def test_how_the_prompt_is_composed(
    run: Callable[..., Run], words: list[str], piped: bytes, prompt: str
) -> None:
    result = run(*words, piped=piped, script=turn("ok"))
    assert result.code == 0
    assert result.engine.seen[0][0].messages[-1].content == prompt


@pytest.mark.parametrize(
    ("piped", "code", "says"),
    [
        (b"", 2, "Nothing to answer"),
        (b" \n\t", 2, "Nothing to answer"),
        (b"good \xff bad", 2, "not UTF-8: byte 0xff at offset 5"),
        ("héllo".encode("latin1"), 2, "iconv -f LATIN1"),
        (b"PK\x03\x04\x00\x00", 2, "NUL byte at offset 4"),
        ("utf-16".encode("utf-16"), 2, "iconv -f UTF-16"),
    ],
)
def test_stdin_that_cannot_be_used(run: Callable[..., Run], piped: bytes, code: int, says: str) -> None:
    result = run(piped=piped)
    assert (result.code, result.out) == (code, "")
    assert says in result.err
    assert result.err.count("\n") == 1
    assert result.engine.seen == []


def test_more_than_any_context_holds_is_refused_early() -> None:
    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            assert 0 < size <= stdin.MAX_BYTES + 1
            return b"x" * size

    with pytest.raises(ContextFullError, match="more than 16 MiB") as caught:
        stdin.read_text(Endless())  # type: ignore[arg-type]
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("reason", "code"), [("stop", 0), ("length", 5), ("context", 5), ("interrupted", 130)]
)
def test_how_the_answer_ended_is_the_exit_code(run: Callable[..., Run], reason: str, code: int) -> None:
    result = run("x", script=turn("some words", reason=reason))
    assert (result.code, result.out) == (code, "some words\n")
    assert ("glmchat: The answer stopped" in result.err) == (code == 5)


def test_an_answer_that_is_empty_is_said(run: Callable[..., Run]) -> None:
    result = run("x", script=turn("", thinking="Well, then."))
    assert (result.code, result.out) == (0, "")
    assert result.err == f"glmchat: {plain.EMPTY}\n"


def test_a_call_is_shown_not_run(run: Callable[..., Run], tmp_path: Path) -> None:
    file = tmp_path / "tools.json"
    file.write_text('[{"type": "function", "function": {"name": "now", "parameters": {}}}]')
    script = turn(calls=[ToolCall("now", {"zone": "UTC"})], reason="tool_calls")
    result = run("--tools", str(file), "time?", script=script)
    assert (result.code, result.out) == (0, "")
    assert result.err == 'glmchat: the model calls now(zone="UTC"), which is not declared to be run.\n'
    assert [t["function"]["name"] for t in result.engine.seen[0][1]] == ["now"]


def test_thinking_goes_to_stderr_when_asked(run: Callable[..., Run]) -> None:
    result = run("--show-thinking", "x", script=turn("Yes.", thinking="\nhm, so\nit is\n"))
    assert (result.out, result.err) == ("Yes.\n", "hm, so\nit is\n")


def test_text_in_a_pipe_is_not_altered_but_for_blank_ends(run: Callable[..., Run]) -> None:
    script = [
        AnswerDelta("\n"),
        AnswerDelta("\n a \x1b[1m"),
        AnswerDelta("\r\n\n"),
        AnswerDelta("b\n"),
        *turn("")[-1:],
    ]
    assert run("x", script=script).out == "a \x1b[1m\r\n\nb\n"


def test_json_is_one_object_with_every_field(run: Callable[..., Run]) -> None:
    call = ToolCall("now", {"n": 1, "t": "中\u2028"})
    result = run("--json", "x", script=turn("Hi", thinking="hm", calls=[call], reason="tool_calls"))
    assert result.out.count("\n") == 1
    message = {
        "role": "assistant",
        "content": "Hi",
        "reasoning_content": "hm",
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "now", "arguments": {"n": 1, "t": "中\u2028"}},
            }
        ],
    }
    assert json.loads(result.out) == {
        "model": "scripted",
        "message": message,
        "messages": [message],
        "usage": {
            "prompt_tokens": 8,
            "cached_tokens": 0,
            "completion_tokens": 2,
            "reasoning_tokens": 1,
            "drafted_tokens": 0,
            "accepted_tokens": 0,
        },
        "timing": {"load_s": 0.5, "ttft_s": 0.25, "decode_tokens_per_s": 50.0, "total_s": 1.0},
        "finish_reason": "tool_calls",
    }
    assert len(result.out.splitlines()) == 1, "not even U+2028 makes a second line"


def test_stream_json_is_one_event_a_line_and_ends_with_the_whole(run: Callable[..., Run]) -> None:
    result = run("--stream-json", "x", script=turn("a b", thinking="t"))
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert lines[:-1] == [
        {"type": "prompt_ready", "prompt_tokens": 8, "cached_tokens": 0},
        {"type": "thinking_delta", "text": "t", "tokens": 1},
        {"type": "thinking_done", "seconds": 1.5, "tokens": 1, "closed": True},
        {"type": "answer_delta", "text": "a "},
        {"type": "answer_delta", "text": "b"},
    ]
    assert lines[-1]["type"] == "turn_done"
    assert lines[-1]["message"]["content"] == "a b"
    assert lines[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize("form", ["--json", "--stream-json"])
def test_a_fault_is_json_too(run: Callable[..., Run], form: str) -> None:
    result = run(form, "x", script=[PromptReady(1), ModelError("It broke; try again.")])
    last = json.loads(result.out.splitlines()[-1])
    assert last["error"] == {"type": "ModelError", "message": "It broke; try again.", "exit_code": 3}
    assert (result.code, result.err) == (3, "glmchat: It broke; try again.\n")


def test_a_bug_is_one_line_unless_debug(run: Callable[..., Run]) -> None:
    result = run("x", script=ValueError("odd\x1b[2J"))
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "internal error, ValueError: odd␛[2J. --debug shows where." in result.err
    assert "Traceback" in run("--debug", "x", script=ValueError("odd")).err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--modle", "x"], "Unknown option --modle; did you mean --model?"),
        (["--modle=x"], "did you mean --model?"),
        (["--zzz"], "put -- before a prompt"),
        (["a", "b"], "'b' is a second one"),
        (["--temperature", "hot", "x"], "--temperature: must be a number from 0 to 2, not 'hot'"),
        (["--top-p", "0", "x"], "--top-p: must be a number"),
        (["--max-tokens", "0", "x"], "--max-tokens: must be a whole number from 1"),
        (["--seed", "-1", "x"], "--seed"),
        (["--dtype", "int8", "x"], "must be one of auto, bfloat16"),
        (["--json", "--stream-json", "x"], "not allowed with"),
        (["--model"], "expected one argument"),
        (["--config", "/does/not/exist.toml", "x"], "does not exist"),
        (["--system", "@/does/not/exist", "x"], "--system: /does/not/exist cannot be read"),
        (["--system", "@/dev/zero", "x"], "--system: /dev/zero is longer than"),
        (["--tools", "/does/not/exist", "x"], "/does/not/exist cannot be read"),
        (["--allow", "now", "x"], "--allow now: there is no such tool; declared are: none."),
        (["--tools", str(WEATHER), "--allow", "get_wether", "x"], "no such tool; did you mean get_weather?"),
        (["caf\udce9"], "not valid UTF-8"),
    ],
)
def test_wrong_usage_is_one_line_and_two(run: Callable[..., Run], words: list[str], says: str) -> None:
    result = run(*words, script=turn("never"))
    assert (result.code, result.out) == (2, "")
    assert says in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("[1]", "tools[0]"),
        ('[{"name": "a"}, {"x": 1}]', "tools[1]: 'function' is missing"),
    ],
)
def test_wrong_tools(run: Callable[..., Run], tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "t.json").write_text(text)
    result = run("--tools", str(tmp_path / "t.json"), "x")
    assert result.code == 2
    assert says in result.err


def test_options_reach_the_engine(run: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("Be brief.\n")
    words = [
        "--no-think",
        "--temperature",
        "0.5",
        "--top-p=0.9",
        "--top-k",
        "40",
        "--max-tokens",
        "9",
        "--seed",
        "3",
    ]
    result = run(
        *words, "--greedy", "--system", f"@{tmp_path}/s.txt", "--model", "./m", "hi", script=turn("ok")
    )
    conversation, _, options = result.engine.seen[0]
    assert conversation.messages[0].content == "Be brief."
    assert options is not None
    assert (options.enable_thinking, options.greedy, options.seed, options.max_tokens) == (False, True, 3, 9)
    assert (options.temperature, options.top_p, options.top_k) == (0.5, 0.9, 40)
    assert result.settings.model == "./m"


def test_a_switch_of_the_config_can_be_turned_off(run: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("offline = true\nthink = false\n")
    config = ["--config", str(tmp_path / "c.toml")]
    kept = run(*config, "x", script=turn("ok")).settings
    assert (kept.offline, kept.think) == (True, False)
    turned = run(*config, "--no-offline", "--think", "x", script=turn("ok")).settings
    assert (turned.offline, turned.think) == (False, True)


def test_help_names_every_setting_and_fits_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for entry in table():
        assert flag(entry.name) in text
    for word in ("exit codes", "examples", "--json", "--print-prompt", "--version", "--config"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 110


def command(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *words], env=env, capture_output=True, text=True, timeout=60, **more
    )


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["bench", "--help"]])
def test_help_and_version_import_nothing_heavy(words: list[str]) -> None:
    result = command("-X", "importtime", "-m", "glmchat", *words)
    assert result.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "argparse" in imported
    heavy = {
        "torch",
        "transformers",
        "rich",
        "prompt_toolkit",
        "jinja2",
        "tokenizers",
        "numpy",
        "glmchat.chat",
    }
    assert not heavy & imported


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_cost_at_most_ten_empty_programs(option: str) -> None:
    def seconds(*words: str) -> float:
        began = time.perf_counter()
        assert command(*words).returncode == 0
        return time.perf_counter() - began

    ratios = [seconds("-m", "glmchat", option) / seconds("-c", "pass") for _ in range(7)]
    assert statistics.median(ratios) <= 10


@pytest.mark.parametrize("words", [("--version",), ("--help",), ("bench", "--help")])
def test_a_full_disk_behind_version_is_one_line(words: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [sys.executable, "-u", "-m", "glmchat", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (ran.returncode, ran.stderr) == (1, "glmchat: No space left on device.\n")


def test_a_system_without_terminals_as_we_know_them_is_named_in_one_line() -> None:
    ran = command("-c", "import sys; sys.modules['termios'] = None; import glmchat.cli")
    assert ran.returncode == 1
    assert ran.stderr == (
        "glmchat: This system has no termios; glmchat runs on Linux and macOS, on Windows in WSL.\n"
    )


def test_a_folder_that_was_removed_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    ran = subprocess.run(
        ["sh", "-c", 'rmdir "$PWD"; exec "$0" -m glmchat -- hi', sys.executable],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert ran.returncode == EXIT_USAGE
    assert ran.stderr.splitlines()[-1] == (
        "glmchat: The folder you are in was removed; go to another one first."
    )


def test_help_in_a_locale_that_lacks_characters() -> None:
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ran = subprocess.run([sys.executable, "-m", "glmchat", "--help"], env=environ, capture_output=True)
    assert ran.returncode == 0
    assert b"usage: glmchat" in ran.stdout


@pytest.mark.parametrize(
    ("words", "code"), [(["-h"], 0), (["init", "--help"], 0), ([], 2), (["init", "-x"], 2), (["check"], 2)]
)
def test_how_tools_is_used(
    words: list[str],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["tools", *words]) == code
    assert "Use glmchat tools check FILE" in "".join(capfd.readouterr())
    assert list(tmp_path.iterdir()) == []
