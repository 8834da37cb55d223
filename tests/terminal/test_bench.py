"""`glmchat bench` as a person or a program runs it, with the bundled model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from glmchat import cli
from glmchat.engine import native

from ..pty import ROOT, terminal

QUICK = ["--model", "demo", "--device-map", "cpu", "--lengths", "8, 40", "--repeats", "1"]


@pytest.fixture(autouse=True)
def nobodys_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def bench(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(["bench", *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_json_has_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = bench(capsys, *QUICK, "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert list(told) == [
        "model",
        "device",
        "dtype",
        "threads",
        "attention",
        "parameters",
        "context_length",
        "load_s",
        "weights_bytes",
        "active_bytes",
        "bandwidth_bytes_per_s",
        "peak_memory_bytes",
        "lengths",
        "guessing",
    ]
    assert (told["model"], told["device"], told["dtype"]) == ("demo", "cpu", "bfloat16")
    assert told["active_bytes"] < told["weights_bytes"] < told["peak_memory_bytes"]["process"]
    assert [at["context_tokens"] for at in told["lengths"]] == [8, 40]
    for at in told["lengths"]:
        assert set(at) == {
            "context_tokens",
            "prefill_tokens_per_s",
            "ttft_s",
            "decode_tokens_per_s",
            "kv_cache_bytes",
            "limit_tokens_per_s",
            "limit_share",
        }
        assert at["limit_share"] == pytest.approx(at["decode_tokens_per_s"] / at["limit_tokens_per_s"])
    assert set(told["guessing"]) == {"decode_tokens_per_s", "tokens_per_forward"}


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = bench(capsys, *QUICK, "--dtype", "float32", "--speculate", "off")
    assert (code, err) == (0, "")
    assert re.search(r"^model +demo$", out, re.MULTILINE)
    assert re.search(r"^device +cpu · \d+ CPU threads? · float32$", out, re.MULTILINE)
    assert re.search(r"^attention +glmchat_grouped$", out, re.MULTILINE)
    assert re.search(r"^parameters +5.9M · loaded in ", out, re.MULTILINE)
    rows = [line for line in out.splitlines() if re.match(r"│ +(8|40) │", line)]
    assert len(rows) == 2
    assert all(re.search(r"│ +\d+% │$", row) for row in rows)
    assert "guesses" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_kernels_that_were_not_compiled_are_missed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if sys.platform != "linux" or not native.build():
        pytest.skip("there are no kernels for this CPU")
    missed = "The kernels in C are missing: get gcc, and then install glmchat anew."
    assert (missed in bench(capsys, *QUICK)[1]) is not native.library(str(native.build())).is_file()
    monkeypatch.setattr(native, "library", lambda build: tmp_path / build)
    assert missed in bench(capsys, *QUICK)[1].splitlines()


def test_a_reader_that_goes_away_ends_it_as_any_other_run() -> None:
    read, write = os.pipe()
    words = [sys.executable, "-m", "glmchat", "bench", *QUICK]
    environ = {**os.environ, "PYTHONUNBUFFERED": ""}  # so that it is the table that cannot be written
    with subprocess.Popen(
        words, stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environ
    ) as run:
        os.close(write)
        os.close(read)
        assert run.communicate()[1] == ""
    assert run.returncode == 141


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--lengths", "128,5000"], "--lengths 5000: the context of demo holds 4,096 tokens"),
        (["--lengths", "0"], "--lengths: must be a whole number from 1"),
        (["--lengths", "8,1k"], "must be a whole number from 1 to 10000000, not '1k'. See glmchat bench"),
        (["--repeats", "0"], "--repeats: must be a whole number from 1"),
        (["--lenghts", "1"], "Unknown option --lenghts; did you mean --lengths?"),
        (["--zzz"], "Unknown option --zzz; see glmchat bench --help."),
        (["my", "mattress"], "glmchat bench takes no prompt: 'my'."),
        (["--max-memory", "lots"], "--max-memory"),
        (["--config", "/does/not/exist.toml"], "does not exist"),
    ],
)
def test_wrong_usage_is_one_line(capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    code, out, err = bench(capsys, *words)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1


def test_a_fault_is_json_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = bench(capsys, "--model", str(tmp_path / "none"), "--json")
    assert code == 3
    assert json.loads(out)["error"]["exit_code"] == 3
    assert err.startswith("glmchat: ")


def test_at_a_terminal_it_says_what_it_measures_and_ctrl_c_ends_it() -> None:
    words = ["-m", "glmchat", "bench", "--model", "demo", "--lengths", "4000", "--repeats", "1000"]
    with terminal(words) as person:
        person.wait_for("measuring: ")
        person.send("\x03")
        assert person.wait_end() == 130
        assert "Traceback" not in person.text
        assert "measuring" not in person.text
