"""The benchmarks run and print their table; what they measure is for people to read, not for a test."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Glm4MoeConfig

from benchmarks import gpu

ROOT = Path(__file__).resolve().parent.parent


Arguments = tuple[str, ...]
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Iterator[dict[Arguments, Future[Done]]]:
    """Those that are asked for, two at a time: it does not matter here how fast they are."""

    def run(arguments: Arguments) -> Done:
        command = [sys.executable, "-m", "benchmarks", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    own = [item for item in request.session.items if item.path == request.path]
    asked = [item.callspec.params["arguments"] for item in own if "runs" in getattr(item, "fixturenames", ())]
    with ThreadPoolExecutor(2) as pool:
        yield {arguments: pool.submit(run, arguments) for arguments in asked}


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        (
            ("decode", "--model", "demo", "--tokens", "4", "--repeats", "1"),
            ("demo, ", "generate + streamer", "guessing"),
        ),
        (
            ("busy", "--model", "demo", "--tokens", "4", "--repeats", "1"),
            ("demo, beside 0", "demo, beside 1"),
        ),
        (("speculate", "--tokens", "20", "--repeats", "1"), ("demo, mtp", "tokens a forward")),
        (
            ("reuse", "--model", "demo", "--history", "400", "--turns", "4", "--last", "6", "--repeats", "1"),
            ("no reuse", "the message alone"),
        ),
        (
            ("typed", "--model", "demo", "--history", "400", "--turns", "4", "--last", "6", "--repeats", "1"),
            ("no reuse", "the message alone", "turn 6"),
        ),
        (
            ("cancel", "--model", "demo", "--prompt-tokens", "3000", "--repeats", "2"),
            ("prefill of 3,000", "decoding"),
        ),
        (
            ("memory", "--model", "demo", "--turns", "20", "--repeats", "1"),
            ("peak of a load", "20 turns ÷ 2 ", "20 turns ÷ 10"),
        ),
        (("load", "--model", "demo", "--repeats", "1"), ("demo: load ÷ from_pretrained",)),
        (("startup", "--repeats", "1"), ("--version", "--help", "echo hi | glmchat")),
        (("render", "--tokens", "400", "--short", "200", "--repeats", "1"), ("rich's Live", "10 ms")),
        (
            (
                "gpu",
                "--device",
                "cpu",
                "--compile",
                "off",
                "--prefill",
                "100",
                "--tokens",
                "4",
                "--repeats",
                "1",
            ),
            ("decode step", "generate", "prefill of 100"),
        ),
        (
            ("terminal", "--model", "demo", "--tokens", "8", "--repeats", "1"),
            ("demo: ", "first key", "echo of keys"),
        ),
    ],
)
def test_a_short_run_prints_the_table(
    arguments: Arguments, rows: Arguments, runs: dict[Arguments, Future[Done]]
) -> None:
    done = runs[arguments].result()
    assert done.returncode in (0, 1), done.stderr  # 1: a goal was missed, as it may be in so short a run
    assert "ratio" in done.stdout, done.stderr
    assert all(row in done.stdout for row in rows)


def test_without_a_gpu_its_benchmark_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    command = [sys.executable, "-m", "benchmarks", "gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "There is no CUDA device here, so there is nothing to measure.\n"


def test_what_a_token_reads_of_glm_4_5_air() -> None:
    """By the published sizes: 106.9B parameters, of which 12.8B are used besides the embeddings."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(Glm4MoeConfig(**gpu.AIR), dtype=torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(106.85e9, rel=1e-3)
    assert gpu.token_bytes(model) == pytest.approx(2 * 12.80e9, rel=1e-3)
    assert gpu.cache_bytes(model, 1) == 188_416
    assert model.model.rotary_emb.inv_freq.shape == (32,)  # half of each head's 128 is rotated, in pairs


@pytest.mark.parametrize(("free_gib", "layers"), [(1, 2), (78, 15), (1000, 46)])
def test_as_many_layers_as_fit(free_gib: int, layers: int) -> None:
    assert gpu.count_layers(gpu.AIR, free_gib * 2**30) == layers
