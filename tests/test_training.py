"""The demo's training: sound dialogues, a program that runs, a checkpoint that does what it is for."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from glmchat import Chat, GenerationOptions, TurnDone, parse_output, render_prompt
from training import talk, toolbox
from training.data import as_text
from training.dialogues import dialogue
from training.evaluate import assert_held_out, load, rates, run
from training.held_out import cases

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "glmchat" / "demo"


def test_what_a_dialogue_teaches_parses_back_to_itself() -> None:
    rng = random.Random(3)
    for _ in range(400):
        d = dialogue(rng)
        last = d.messages[-1]
        written = as_text(d).rpartition("<|assistant|>")[2]
        parsed = parse_output(written, tools=d.tools)
        assert (parsed.content or "") == last["content"].strip()
        assert (parsed.reasoning or "") == (last["reasoning_content"] if d.enable_thinking else "")
        wanted = [c["function"] for c in last.get("tool_calls", ())]
        assert [(c.name, c.arguments) for c in parsed.tool_calls] == [
            (c["name"], c["arguments"]) for c in wanted
        ]
        assert parsed.stop_token == ("<|observation|>" if wanted else "<|user|>")


def test_calls_keep_to_the_declarations() -> None:
    rng = random.Random(4)
    for _ in range(400):
        messages, tools = toolbox.tool_use(rng)
        declared = {t["function"]["name"]: t["function"]["parameters"] for t in tools}
        for call in (c["function"] for m in messages for c in m.get("tool_calls", ())):
            parameters = declared[call["name"]]
            assert (
                set(parameters.get("required", ())) <= set(call["arguments"]) <= set(parameters["properties"])
            )


@pytest.mark.parametrize("op", "+-*")
def test_sums_are_right_and_worked_out_to_the_end(op: str) -> None:
    rng = random.Random(5)
    for _ in range(300):
        a, b = rng.randint(0, 999), rng.randint(0, 99)
        think, result = talk.worked(a, op, b)
        assert result == {"+": a + b, "-": a - b, "*": a * b}[op]
        assert think.endswith(str(result))


def test_the_measurement_is_held_out() -> None:
    assert_held_out(3000)


def test_training_runs_and_gives_a_checkpoint_that_chats(tmp_path: Path) -> None:
    words = ["--out", str(tmp_path), "--steps", "3", "--drill-steps", "1", "--batch", "512"]
    done = subprocess.run(
        [sys.executable, "-m", "training.train", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    with Chat.from_model(str(tmp_path), options=GenerationOptions(max_tokens=4)) as chat:
        *_, last = chat.send("hello")
    assert isinstance(last, TurnDone)
    assert last.usage.completion_tokens == 4


def test_the_draft_layer_is_trained_beside_a_trunk_that_stays(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DEMO, tmp_path / "demo"))
    words = ["--model", str(folder), "--steps", "3", "--batch", "512", "--count", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "training.mtp", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "draft 3:" in done.stdout
    before, after = load_file(DEMO / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "model.layers.5.eh_proj.weight" in changed
    assert all(name.startswith("model.layers.5.") for name in changed)
    assert (folder / "config.json").read_bytes() == (DEMO / "config.json").read_bytes()


def test_the_bundled_checkpoint_is_small_and_brings_our_template() -> None:
    assert sum(f.stat().st_size for f in DEMO.iterdir() if f.name[0] != "_") <= 20e6
    template = (DEMO / "chat_template.jinja").read_text(encoding="utf-8")
    assert template == (ROOT / "templates" / "glm-4.5.jinja").read_text(encoding="utf-8")
    assert "hello" in render_prompt([{"role": "user", "content": "hello"}], template=template)


def test_the_bundled_checkpoint_does_what_it_is_for() -> None:
    """A small sample of `python -m training.evaluate`, which has the exact shares and their targets."""
    model, tokenizer = load(DEMO)
    table = {k: rate for k, (rate, _) in rates(run(model, tokenizer, cases(random.Random(11), 6))).items()}
    assert table["thinking off obeyed"] == 1.0
    assert table["format valid"] >= 0.95
    assert table["right tool"] >= 0.8
    assert table["Chinese greeting"] >= 0.8
    assert table["sum, thinking"] >= 0.8
    assert table["table"] >= 0.8
