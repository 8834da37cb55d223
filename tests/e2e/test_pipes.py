"""The real program with the bundled checkpoint in pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from glmchat.glm.template import render_prompt

ROOT = Path(__file__).resolve().parent.parent.parent
DEMO = ("--model", "demo")


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    ours = ("GLMCHAT_", "XDG_", "PYTHONUNBUFFERED")  # people's output is buffered
    clean = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    return {**clean, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}


def glmchat(
    env: dict[str, str], *words: str, piped: bytes = b"", **more: Any
) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "glmchat", *words]
    return subprocess.run(command, env=env, input=piped, capture_output=True, timeout=120, **more)


def test_a_piped_word_is_answered_and_says_that_it_is_the_demo(env: dict[str, str]) -> None:
    result = glmchat(env, "--greedy", piped=b"hi\n")
    assert result.returncode == 0, result.stderr
    answer = result.stdout.decode()
    assert answer.strip()
    assert answer.endswith("\n")
    assert "<think>" not in answer
    notes = result.stderr.decode()
    assert notes.count("\n") == 1
    assert "bundled demo" in notes
    assert "--model zai-org/GLM-4.5-Air" in notes


def test_json_has_every_field_and_counts_that_agree(env: dict[str, str]) -> None:
    result = glmchat(env, *DEMO, "--greedy", "--json", "--", "What is 12 + 30?")
    assert (result.returncode, result.stderr) == (0, b"")
    whole = json.loads(result.stdout)
    assert list(whole) == ["model", "message", "messages", "usage", "timing", "finish_reason"]
    assert whole["model"] == "demo"
    assert list(whole["message"]) == ["role", "content", "reasoning_content", "tool_calls"]
    assert whole["message"]["role"] == "assistant"
    assert whole["message"]["content"]
    assert whole["message"]["reasoning_content"], "thinking is on by default"
    assert whole["finish_reason"] == "stop"
    usage, timing = whole["usage"], whole["timing"]
    assert 0 < usage["reasoning_tokens"] < usage["completion_tokens"]
    assert usage["prompt_tokens"] > 0
    assert usage["cached_tokens"] == 0
    assert 0 < timing["ttft_s"] <= timing["total_s"]
    assert timing["load_s"] > 0
    assert timing["decode_tokens_per_s"] > 0


def test_stream_json_is_json_in_pieces_and_no_think_is_obeyed(env: dict[str, str]) -> None:
    result = glmchat(env, *DEMO, "--greedy", "--no-think", "--stream-json", "hello")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 0
    assert events[0]["type"] == "prompt_ready"
    assert not any(e["type"] == "thinking_delta" for e in events)
    deltas = "".join(e["text"] for e in events if e["type"] == "answer_delta")
    assert events[-1]["type"] == "turn_done"
    assert deltas.strip() == events[-1]["message"]["content"] != ""


def test_the_token_limit_is_exit_code_5(env: dict[str, str]) -> None:
    result = glmchat(env, *DEMO, "--no-think", "--greedy", "--max-tokens", "2", "hello")
    assert result.returncode == 5
    assert result.stdout.strip()
    assert b"token limit" in result.stderr


def test_too_long_for_the_context_is_exit_code_5(env: dict[str, str]) -> None:
    result = glmchat(env, *DEMO, "summarise", piped=b"many words " * 100_000)
    assert (result.returncode, result.stdout) == (5, b"")
    assert result.stderr.count(b"\n") == 1
    assert b"context" in result.stderr


def test_50_mb_are_refused_quickly(env: dict[str, str]) -> None:
    began = time.monotonic()
    result = glmchat(env, *DEMO, "summarise", piped=b"0123456789" * 5_000_000)
    assert (result.returncode, result.stdout) == (5, b"")
    assert b"16 MiB" in result.stderr
    assert time.monotonic() - began < 15, "before a model is loaded"


def test_a_reader_that_goes_away_ends_it_quietly(env: dict[str, str]) -> None:
    command = f"set -o pipefail; {sys.executable} -m glmchat --model demo --stream-json hello | head -n 1"
    result = subprocess.run(["bash", "-c", command], env=env, capture_output=True, timeout=120)
    assert json.loads(result.stdout)["type"] == "prompt_ready"
    assert result.stderr == b""
    assert result.returncode == 141


@pytest.mark.parametrize("form", ["--print-prompt", "--json"])
def test_a_full_disk_is_one_line(env: dict[str, str], form: str) -> None:
    command = [sys.executable, "-m", "glmchat", *DEMO, form, "hello"]
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, timeout=60
        )
    assert (result.returncode, result.stderr) == (1, b"glmchat: No space left on device.\n")


def test_sigint_while_loading_is_130_and_quiet(env: dict[str, str]) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "glmchat", *DEMO, "hello"],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    time.sleep(1.0)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert (child.returncode, out, err) == (130, b"", b"")


def test_sigint_in_an_answer_keeps_what_came(env: dict[str, str]) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "glmchat", *DEMO, "--stream-json", "hello"],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout is not None
    first = child.stdout.readline()
    child.send_signal(signal.SIGINT)
    rest, err = child.communicate(timeout=30)
    last = json.loads((first + rest).splitlines()[-1])
    assert last["type"] == "turn_done"
    # A model this small may have ended its answer before the signal came.
    assert (child.returncode, last["finish_reason"]) in {(130, "interrupted"), (0, "stop")}
    assert err == b""


def test_print_prompt_is_the_official_text_and_loads_no_torch(env: dict[str, str]) -> None:
    code = (
        "import sys\nfrom glmchat.cli import main\ncode = main(sys.argv[1:])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'heavy'\nsys.exit(code)"
    )
    words = [*DEMO, "--print-prompt", "--no-think", "--system", "Be <|user|> brief.", "a <think> b"]
    result = subprocess.run(
        [sys.executable, "-c", code, *words],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    assert (result.returncode, result.stderr) == (0, b"")
    messages = [
        {"role": "system", "content": "Be <|user|> brief."},
        {"role": "user", "content": "a <think> b"},
    ]
    assert result.stdout.decode() == render_prompt(messages, enable_thinking=False)


def test_a_model_that_is_not_there_is_exit_code_3(env: dict[str, str], tmp_path: Path) -> None:
    for name, says in (
        (str(tmp_path), "empty folder"),
        ("no-such-thing", "neither an existing folder nor a hub name"),
    ):
        result = glmchat(env, "--model", name, "hi")
        assert (result.returncode, result.stdout) == (3, b"")
        assert says in result.stderr.decode()
        assert result.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--system", "@~nobody-here/x", "hi"), 2),
        (("--config", "~nobody-here/x", "hi"), 2),
        (("--tools", "~nobody-here/x", "hi"), 2),
        (("tools", "check", "~nobody-here/x"), 2),
        (("tools", "init", "~nobody-here/x"), 2),
        (("--model", "~nobody-here/x", "hi"), 3),
        (("--chat-template", "~nobody-here/x", "hi"), 3),
    ],
)
def test_a_home_of_nobody_is_a_path_that_is_not_there(
    env: dict[str, str], words: tuple[str, ...], code: int
) -> None:
    result = glmchat(env, *words)
    *_, said = (result.stdout + result.stderr).decode().splitlines()
    assert result.returncode == code, said
    assert "~nobody-here/x" in said
    assert b"Traceback" not in result.stderr


@pytest.mark.parametrize("setting", ['tools = "a\\u0000"', 'system = "@a\\u0000"'])
def test_a_path_that_can_be_none(env: dict[str, str], tmp_path: Path, setting: str) -> None:
    config = tmp_path / "odd.toml"
    config.write_text(setting)
    result = glmchat(env, "--config", str(config), *DEMO, "hi")
    assert (result.returncode, result.stdout, result.stderr.count(b"\n")) == (2, b"", 1)


def test_nobody_reads_the_thoughts(env: dict[str, str]) -> None:
    """The answer does not depend on it."""
    command = [
        sys.executable,
        "-m",
        "glmchat",
        *DEMO,
        "--greedy",
        "--show-thinking",
        "--",
        "What is 12 + 30?",
    ]
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=full, timeout=60
        )
    assert (result.returncode, b"42" in result.stdout) == (0, True)


def test_json_is_unicode_in_any_locale(env: dict[str, str], tmp_path: Path) -> None:
    name = str(tmp_path / "é€")
    result = glmchat({**env, "PYTHONIOENCODING": "latin-1"}, "--json", "--model", name, "--", "hi")
    assert name in json.loads(result.stdout.decode("ascii"))["error"]["message"]


WEATHER = str(ROOT / "examples" / "weather" / "tools.json")


def test_a_tool_is_run_and_the_answer_uses_its_result(env: dict[str, str]) -> None:
    words = (*DEMO, "--greedy", "--tools", WEATHER, "--yes", "--", "What is the weather in Oslo?")
    result = glmchat(env, *words)
    assert result.returncode == 0, result.stderr
    assert "24°C, sunny" in result.stdout.decode()
    assert result.stderr.decode() == 'glmchat: runs get_weather(city="Oslo")\n'


def test_two_calls_of_one_turn_as_json(env: dict[str, str]) -> None:
    words = ("--tools", WEATHER, "--allow", "get_weather", "--", "What is the weather in Oslo and Rome?")
    result = glmchat(env, *DEMO, "--greedy", "--json", *words)
    whole = json.loads(result.stdout)
    roles = [m["role"] for m in whole["messages"]]
    assert roles == ["assistant", "tool", "tool", "assistant"]
    ids = [call["id"] for call in whole["messages"][0]["tool_calls"]]
    assert [m["tool_call_id"] for m in whole["messages"][1:3]] == ids
    assert whole["messages"][-1]["content"] == whole["message"]["content"]


def test_every_call_and_result_is_in_the_stream(env: dict[str, str]) -> None:
    words = ("--tools", WEATHER, "--yes", "--", "What is the weather in Oslo?")
    result = glmchat(env, *DEMO, "--greedy", "--stream-json", *words)
    events = [json.loads(line) for line in result.stdout.splitlines()]
    kinds = [event["type"] for event in events]
    order = ["tool_call_ready", "round_done", "tool_started", "tool_output", "tool_done", "turn_done"]
    assert [kinds.index(kind) for kind in order] == sorted(kinds.index(kind) for kind in order)
    done = events[kinds.index("tool_done")]
    assert (done["call"]["function"]["name"], done["ok"], done["text"]) == (
        "get_weather",
        True,
        "24°C, sunny\n",
    )


def test_nobody_is_there_to_allow_a_run(env: dict[str, str]) -> None:
    result = glmchat(env, *DEMO, "--greedy", "--tools", WEATHER, "--", "What is the weather in Oslo?")
    assert "not allowed: nobody is there to allow it" in result.stderr.decode()
    assert "24°C" not in result.stdout.decode()


def test_a_failing_tool_is_told(env: dict[str, str], tmp_path: Path) -> None:
    (tools,) = json.loads(Path(WEATHER).read_text())["tools"]
    tools["run"] = {"command": ["sh", "-c", "echo no service >&2; exit 7"]}
    (tmp_path / "tools.json").write_text(json.dumps({"tools": [tools]}))
    words = ("--tools", str(tmp_path / "tools.json"), "--yes", "--", "What is the weather in Oslo?")
    result = glmchat(env, *DEMO, "--greedy", *words)
    assert result.returncode == 0
    assert "glmchat: get_weather: exit code 7" in result.stderr.decode()
