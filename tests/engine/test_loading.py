"""Loading: placement on devices and disk, options that cannot be met, weights that are missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from glmchat.engine import loading, placing
from glmchat.engine.local import open_local
from glmchat.engine.memory import LoadOptions, parse_device_map, parse_max_memory
from glmchat.engine.placing import check_room
from glmchat.errors import GlmChatError, ModelError, UsageError
from glmchat.events import LoadProgress
from glmchat.glm.checkpoints import resolve
from glmchat.messages import Conversation
from tests import tiny
from tests.gpu import needs_gpu
from tests.hub import serve

from .conformance import ask, done


def answer(folder: Path, **options: Any) -> tuple[str, str]:
    """Where the model ran, and its greedy answer."""
    with open_local(str(folder), LoadOptions(**options)) as engine:
        return engine.info.device, done(ask(engine, tiny.COUNT.question)).message.content


EXPECTED = tiny.LONG + "done."
SPLIT = {"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": 1, "model.norm": 1, "lm_head": 1}


def device_map(tmp_path: Path, first: str | int, second: str | int) -> str:
    """A file that places the model's first half and its second half."""
    file = tmp_path / "map.json"
    placed = {name: (first, second)[half] for name, half in SPLIT.items()}
    file.write_text(json.dumps({**placed, "model.rotary_emb": first}))
    return str(file)


@pytest.mark.parametrize("name", ["auto", "cpu", "balanced", "sequential"])
def test_device_maps_by_name(tiny_glm: Path, name: str) -> None:
    assert answer(tiny_glm, device_map=name)[1] == EXPECTED


def test_disk_offload_gives_the_same_answer(tiny_glm: Path, tmp_path: Path) -> None:
    offload = tmp_path / "offload"
    placed = device_map(tmp_path, "cpu", "disk")
    device, text = answer(tiny_glm, device_map=placed, offload_dir=str(offload))
    assert device == "cpu + disk"
    assert text == EXPECTED
    assert list(offload.iterdir()) == []  # what was written is gone with the engine


def test_what_killed_processes_left_on_the_disk_goes(tiny_glm: Path, tmp_path: Path) -> None:
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    code = (
        "import sys; from glmchat.engine.loading import _offload_folder\n"
        "with _offload_folder(sys.argv[1]) as folder: (folder / 'weights').write_text(''); " + kill
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    with loading._offload_folder(str(tmp_path)) as own:
        assert not left.exists()
        answer(tiny_glm, max_memory="cpu=400KB", offload_dir=str(tmp_path))
        assert list(tmp_path.iterdir()) == [own], "that of a model which is in use stays"
    assert list(tmp_path.iterdir()) == []


def test_memory_limit_sends_weights_to_disk(tiny_glm: Path, tmp_path: Path) -> None:
    device, text = answer(tiny_glm, max_memory="cpu=400KB", offload_dir=str(tmp_path))
    assert "disk" in device
    assert text == EXPECTED


def test_what_memory_has_no_room_for_goes_to_the_disk(
    tiny_glm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "free_memory", lambda: 1_000_000)
    device, text = answer(tiny_glm, offload_dir=str(tmp_path))
    assert device == "cpu + disk"
    assert text == EXPECTED
    monkeypatch.setattr(placing, "free_memory", lambda: 10_000_000)
    assert answer(tiny_glm, offload_dir=str(tmp_path)) == ("cpu", EXPECTED)


def test_weights_that_fit_nowhere(tiny_glm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = resolve(str(tiny_glm)).stored_bytes
    monkeypatch.setattr(placing, "total_memory", lambda: size)
    assert answer(tiny_glm)[1] == EXPECTED
    monkeypatch.setattr(placing, "total_memory", lambda: size - 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ModelError, match=r"take 0 GB, and this machine has 0 GB .*--offload-dir"):
        answer(tiny_glm)
    checkpoint = resolve(str(tiny_glm))
    check_room(checkpoint, LoadOptions(dtype="bfloat16"))  # they are in FP32, twice as large
    check_room(checkpoint, LoadOptions(offload_dir="x"))


@pytest.mark.parametrize("limit", [None, "cpu=400KB"])
def test_nothing_is_read_ahead_with_weights_from_disk(
    tiny_glm: Path, tmp_path: Path, limit: str | None
) -> None:
    """Each forward reads them all, for one token as for thousands."""
    options = LoadOptions(device_map="auto", max_memory=limit, offload_dir=limit and str(tmp_path))
    with open_local(str(tiny_glm), options) as engine:
        engine.prepare(Conversation([{"role": "user", "content": tiny.COUNT.question}]))
        time.sleep(1)  # a job that comes at once would make it old
        branches = engine.lend(lambda decoder, *_: len(decoder.prefixes._branches))
    assert branches == (limit is None)


def test_a_small_model_leaves_a_large_one_its_threads(
    tiny_glm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = torch.get_num_threads()
    with open_local(str(tiny_glm)) as small:
        assert small.lend(lambda decoder, *_: decoder.loaded.threads) == 1
        monkeypatch.setattr(loading, "SMALL", 0)
        with open_local(str(tiny_glm)) as large:
            assert large.lend(lambda decoder, *_: decoder.loaded.threads) == usual
    assert torch.get_num_threads() == usual


def test_weights_of_other_sizes_than_it_says(tiny_glm: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_glm, tmp_path / "odd"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] + 16}))
    with pytest.raises(ModelError, match=r"weights of other sizes than its config.json says"):
        answer(folder)


def test_explicit_map(tiny_glm: Path, tmp_path: Path) -> None:
    assert answer(tiny_glm, device_map=device_map(tmp_path, "cpu", "cpu")) == ("cpu", EXPECTED)


@needs_gpu
def test_gpu_and_cpu(tiny_glm: Path, tmp_path: Path) -> None:
    assert answer(tiny_glm, device_map="cuda:0") == ("cuda:0", EXPECTED)
    device, text = answer(tiny_glm, device_map=device_map(tmp_path, "cuda:0", "cpu"))
    assert device == "cuda:0 + cpu"
    assert text == EXPECTED


def test_dtype(tiny_glm: Path) -> None:
    for dtype, expected in {"auto": "float32", "bfloat16": "bfloat16"}.items():
        with open_local(str(tiny_glm), LoadOptions(dtype=dtype)) as engine:
            assert engine.info.dtype == expected


@pytest.mark.skipif(sys.platform != "linux", reason="torch has libgomp on Linux alone")
@pytest.mark.parametrize(
    ("said", "spins"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
)
def test_threads_that_wait_for_another_soon_sleep(tiny_glm: Path, said: dict[str, str], spins: str) -> None:
    """Else a token takes a hundred times as long beside programs that take all cores."""
    code = (
        "import os, sys; from glmchat.engine.local import open_local\n"
        "with open_local(sys.argv[1]): print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tiny_glm)],
        env={**env, **said, "OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert f"GOMP_SPINCOUNT = '{spins}'" in ran.stderr
    assert ran.stdout.strip() == str(said.get("GOMP_SPINCOUNT")), "other programs are told nothing"


def test_info_and_progress(tiny_glm: Path) -> None:
    progress: list[LoadProgress] = []
    with open_local(str(tiny_glm), on_progress=progress.append) as engine:
        assert engine.info.parameters > 100_000
        assert engine.info.load_s > 0
        assert engine.info.thinks
        assert engine.info.ends
    weights = [p for p in progress if p.total]
    assert weights[-1].done == weights[-1].total
    size = (tiny_glm / "model.safetensors").stat().st_size
    assert 0.9 * size < weights[-1].total < size, "all bytes but the header's"
    assert (weights[-1].shard, weights[-1].shards) == (1, 1)


@pytest.mark.parametrize(
    ("options", "error", "expected"),
    [
        ({"device_map": "everywhere"}, UsageError, "--device-map everywhere"),
        ({"device_map": "no-such-file.json"}, UsageError, "cannot be read"),
        ({"device_map": "cuda:99"}, ModelError, "cuda:99"),
        ({"max_memory": "70GiB"}, UsageError, "DEVICE=SIZE"),
        ({"max_memory": "99=1GiB"}, ModelError, "--max-memory names 99"),
        ({"max_memory": "cpu=1KB"}, ModelError, "--offload-dir"),
        ({"offload_dir": "/dev/null/x", "max_memory": "cpu=1KB"}, ModelError, "cannot be written"),
        ({"attn": "nonsense"}, ModelError, "--attn"),
        ({"dtype": "load"}, UsageError, "--dtype must be one of auto, bfloat16.*, not 'load'"),
        ({"speculate": "of"}, UsageError, "--speculate must be one of auto, mtp.*, not 'of'"),
        ({"compile": "no"}, UsageError, "--compile must be one of auto, on, off, not 'no'"),
    ],
)
def test_options_that_cannot_be_met(
    tiny_glm: Path, options: dict[str, Any], error: type[GlmChatError], expected: str
) -> None:
    with pytest.raises(error, match=expected) as caught:
        open_local(str(tiny_glm), LoadOptions(**options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "error", "expected"),
    [
        ("{", UsageError, "is not JSON"),
        ("[]", UsageError, "must hold an object"),
        ('{"model": true}', UsageError, "on True"),
        ('{"model": "gpu"}', UsageError, "on 'gpu'"),
        ('{"model": "cpu"}', ModelError, "gives lm_head.weight no device"),
        ('{"model": "cpu", "lm_head": "cpu", "vision": "cpu"}', ModelError, "names 'vision'"),
        ('{"": "cpu", "model.layer.1": "disk"}', ModelError, "names 'model.layer.1'"),
        ("[" * 100_000, UsageError, "is not JSON"),
    ],
)
def test_maps_that_cannot_be_used(
    tiny_glm: Path, tmp_path: Path, content: str, error: type[GlmChatError], expected: str
) -> None:
    file = tmp_path / "map.json"
    file.write_text(content)
    with pytest.raises(error, match=expected):
        open_local(str(tiny_glm), LoadOptions(device_map=str(file)))


def test_max_memory_units() -> None:
    assert parse_max_memory("0=70GiB, 1=1.5TiB,cpu=100GB") == {
        0: 70 * 1024**3,
        1: 3 * 1024**4 // 2,
        "cpu": 100 * 1000**3,
    }
    assert parse_device_map("auto") == "auto"
    assert parse_device_map("cuda:1") == {"": "cuda:1"}


@pytest.fixture
def copy(tiny_glm: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_glm, tmp_path / "model"))


def test_a_checkpoint_without_an_end_says_so(copy: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        kept = {**json.loads((copy / name).read_text()), "eos_token_id": None}
        (copy / name).write_text(json.dumps(kept))
    (copy / "tokenizer_config.json").write_text("{}")
    with open_local(str(copy)) as engine:
        assert not engine.info.ends


def test_missing_weights_are_an_error(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks weights.*model\.norm\.weight"):
        open_local(str(copy))


def test_unknown_model_type(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "glm99"}))
    with pytest.raises(ModelError, match="upgrade it"):
        open_local(str(copy))


def test_remote_code_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "own.py").write_text("raise SystemExit('this code must not run')")
    with pytest.raises(ModelError, match="--trust-remote-code"):
        open_local(str(copy))


def test_trusted_code_is_fetched_and_run(tiny_glm: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_glm, tmp_path / "served"))
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(
        "from transformers import Glm4MoeConfig, Glm4MoeForCausalLM\n"
        "class Config(Glm4MoeConfig): pass\n"
        "class Model(Glm4MoeForCausalLM): config_class = Config\n"
    )
    code = (
        "from glmchat import AnswerDelta, Chat\n"
        "with Chat.from_model('org/name', trust_remote_code=True) as chat:\n"
        "    runner = chat.engine._runner\n"
        "    print(type(runner._loaded._model).__module__)\n"
        f"    list(chat.send({tiny.HELLO.question!r}))\n"
        "    print(chat.conversation.messages[-1].content)\n"
    )
    with serve(folder) as hub:
        told = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **hub.environment(tmp_path / "cache")},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    module, answered = told.stdout.splitlines()
    assert module.startswith("transformers_modules"), told.stderr
    assert answered == "Hello! How can I help you?"


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
@pytest.mark.parametrize("kernel", ["kernels-community/flash-attn2", "flash_attention_2"])
def test_attention_that_a_checkpoint_would_fetch_is_left_out(copy: Path, key: str, kernel: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, key: kernel}))
    assert answer(copy)[1] == EXPECTED


@pytest.mark.parametrize("kept", [None, torch.zeros(3, 3)])
def test_an_expert_that_is_not_there_or_of_another_size(copy: Path, kept: torch.Tensor | None) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    expert = "model.layers.1.mlp.experts.3.up_proj.weight"
    del weights[expert]
    save_file(
        weights if kept is None else {**weights, expert: kept},
        copy / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ModelError, match="lacks some of its experts, or they are of other sizes"):
        open_local(str(copy))


def test_a_name_that_the_libraries_do_not_know(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "hidden_act": "none-such"}))
    with pytest.raises(ModelError, match="'none-such' is not known"):
        open_local(str(copy))


def test_shapes_that_do_not_fit(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "hidden_size": 128}))
    with pytest.raises(ModelError) as caught:
        open_local(str(copy))
    assert "\n" not in str(caught.value)
