"""Checkpoints: each kind of broken one ends in one clear line and exit code 3, before torch is imported."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glmchat.errors import EXIT_MODEL, ModelError
from glmchat.glm.checkpoints import SamplingDefaults, choose_template, resolve, with_weights

Spoil = Callable[[Path], Any]


@pytest.fixture
def copy(tiny_glm: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to be spoiled."""
    return Path(shutil.copytree(tiny_glm, tmp_path / "model"))


def edit(file: str, **changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        data = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**data, **changes}))

    return spoil


def only(*names: str) -> Spoil:
    """Replace all files by empty ones of these names."""

    def spoil(folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        for name in names:
            (folder / name).write_text("{}")

    return spoil


def rename_weights(name: str) -> Spoil:
    return lambda folder: (folder / "model.safetensors").rename(folder / name)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {"model.embed_tokens.weight": 1, "lm_head.weight": 2}
    shards = {name: f"model-0000{number}-of-00002.safetensors" for name, number in names.items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def write(name: str, content: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(content)


def remove(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 14282656\n"

BROKEN: dict[str, tuple[Spoil, str]] = {
    "empty folder": (only(), "is an empty folder"),
    "no config": (remove("config.json"), "no config.json"),
    "config is not JSON": (write("config.json", b"{"), "cannot be read as JSON"),
    "config is a list": (write("config.json", b"[]"), "not a JSON object"),
    "config is not text": (write("config.json", b"\xff\xfe"), "cannot be read as JSON"),
    "no model type": (edit("config.json", model_type=None), "no model_type"),
    "encoder": (edit("config.json", model_type="bert", architectures=["BertForMaskedLM"]), "BertForMaskedLM"),
    "vision model": (
        edit("config.json", architectures=["Glm4vForConditionalGeneration"]),
        "causal language model",
    ),
    "no tokenizer": (remove("tokenizer.json"), "no tokenizer.json"),
    "no weights": (remove("model.safetensors"), "has no weights"),
    "pickle weights": (rename_weights("pytorch_model.bin"), "only pickle weights"),
    "gguf weights": (rename_weights("model.gguf"), "only GGUF weights"),
    "gguf alone": (only("model.gguf"), "GGUF"),
    "adapter": (only("adapter_config.json"), "LoRA adapter"),
    "missing shard": (missing_shard, "model-00002-of-00002.safetensors"),
    "index without map": (write("model.safetensors.index.json", b"{}"), "no weight_map"),
    "truncated shard": (truncate, "where its header says"),
    "truncated header": (write("model.safetensors", b"\xff\0\0\0\0\0\0\0{"), "cut short"),
    "empty shard": (write("model.safetensors", b""), "cut short at 0 bytes"),
    "pointer to the shard": (write("model.safetensors", POINTER), "git lfs pull"),
    "pointer to the tokenizer": (write("tokenizer.json", POINTER), "git lfs pull"),
    "adapter beside a model": (write("adapter_config.json", b"{}"), "LoRA adapter beside a model"),
    "config is too deep": (write("config.json", b"[" * 100_000), "cannot be read as JSON"),
    "architecture is a text": (edit("config.json", architectures="BertForMaskedLM"), "BertForMaskedLM"),
    "temperature is a text": (edit("generation_config.json", temperature="hot"), "temperature must be a"),
    "temperature is none": (edit("generation_config.json", temperature=float("nan")), "not nan"),
    "penalty of nothing": (edit("generation_config.json", repetition_penalty=0), "repetition_penalty must"),
    "top_k is a list": (edit("generation_config.json", top_k=[1]), "top_k must be a whole number"),
    "end is a text": (edit("generation_config.json", eos_token_id="<|user|>"), "eos_token_id must be"),
    "end is nested": (edit("config.json", eos_token_id=[[1]]), "config.json: eos_token_id must be"),
    "more experts than there are": (
        edit("config.json", num_experts_per_tok=5),
        "num_experts_per_tok is 5, and there are only 4 experts (n_routed_experts)",
    ),
    "not safetensors": (write("model.safetensors", b"\x02\0\0\0\0\0\0\0[]"), "safetensors"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_checkpoint_is_refused_in_one_line(copy: Path, kind: str) -> None:
    spoil, expected = BROKEN[kind]
    spoil(copy)
    with pytest.raises(ModelError) as caught:
        assert with_weights(resolve(str(copy))).tokenizer
    message = str(caught.value)
    assert expected in message
    assert "\n" not in message
    assert caught.value.exit_code == EXIT_MODEL == 3


@pytest.mark.parametrize("refused", ["is_dir", "iterdir", "open"])
def test_what_may_not_be_read(copy: Path, monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    def refuse(path: Path, *args: Any, **more: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    checkpoint = resolve(str(copy))
    read = functools.partial(with_weights, checkpoint) if refused == "open" else lambda: resolve(str(copy))
    monkeypatch.setattr(Path, refused, refuse)
    with pytest.raises(ModelError, match=rf"{copy.name}.* cannot be read: Permission denied; check"):
        read()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("a" * 5000, "cannot be read: File name too long|neither an existing folder"),
        ("zai-org/GLM-4.5-Air", "--offline"),
        ("no-such-model", "neither an existing folder nor a hub name"),
        ("./no/such/folder", "neither an existing folder nor a hub name"),
        ("a/../b", "neither an existing folder nor a hub name"),
        ("bad/name..git", "hub"),
    ],
)
def test_unknown_names(model: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=expected) as caught:
        resolve(model, offline=True)
    assert "\n" not in str(caught.value)


def test_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ModelError, match="GGUF files are not loaded"):
        resolve(str(tmp_path / "model.gguf"))


def test_weights_are_not_asked_for_to_print_a_prompt(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    checkpoint = resolve(str(copy))
    assert choose_template(checkpoint).render([{"role": "user", "content": "hi"}]).startswith("[gMASK]<sop>")


def test_no_torch(tiny_glm: Path) -> None:
    code = f"""if True:
        import sys
        from glmchat.glm.checkpoints import resolve
        resolve({str(tiny_glm)!r}).eos_token_ids
        sys.exit(bool({{"torch", "transformers"}} & set(sys.modules)))
    """
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_eos_is_the_union_of_all_sources(copy: Path) -> None:
    edit("generation_config.json", eos_token_id=[3])(copy)
    edit("config.json", eos_token_id=5)(copy)
    edit("tokenizer_config.json", eos_token={"content": "<|user|>", "special": True})(copy)
    checkpoint = resolve(str(copy))
    assert checkpoint.eos_token_ids == {3, 5, checkpoint.tokenizer.token_to_id("<|user|>")}


def test_sampling_defaults(copy: Path) -> None:
    edit("generation_config.json", do_sample=True, temperature=0.6, top_p=0.95, num_beams=4, max_time=2)(copy)
    checkpoint = resolve(str(copy))
    assert checkpoint.sampling == SamplingDefaults(do_sample=True, temperature=0.6, top_p=0.95)
    assert checkpoint.ignored_settings == ["num_beams", "max_time"]


class TestTemplates:
    def test_own_template_in_each_place(self, copy: Path) -> None:
        own = "{{ messages[0].content }}"
        (copy / "chat_template.jinja").unlink()
        edit("tokenizer_config.json", chat_template=own)(copy)
        assert resolve(str(copy)).chat_template == own
        named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "{{ 1 }}"}]
        edit("tokenizer_config.json", chat_template=named)(copy)
        assert resolve(str(copy)).chat_template == "{{ 1 }}"
        (copy / "chat_template.json").write_text(json.dumps({"chat_template": "{{ 2 }}"}))
        assert resolve(str(copy)).chat_template == "{{ 2 }}"

    def test_ours_for_a_glm_without_one(self, copy: Path) -> None:
        (copy / "chat_template.jinja").unlink()
        assert choose_template(resolve(str(copy))).name == "glm-4.5"

    def test_base_checkpoint_is_refused_unless_a_template_is_given(self, copy: Path) -> None:
        base = copy.rename(copy.parent / "GLM-4.5-Air-Base")
        checkpoint = resolve(str(base))
        with pytest.raises(ModelError, match=r"base checkpoint, not a chat model.*--chat-template"):
            choose_template(checkpoint)
        assert choose_template(checkpoint, "glm-4.5").name == "glm-4.5"

    def test_other_model_without_one_is_refused(self, copy: Path) -> None:
        (copy / "chat_template.jinja").unlink()
        edit("config.json", model_type="llama", architectures=["LlamaForCausalLM"])(copy)
        with pytest.raises(ModelError, match="no chat template"):
            choose_template(resolve(str(copy)))
