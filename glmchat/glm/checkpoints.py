"""Finds a checkpoint (the bundled demo, a folder, a hub name) and refuses what cannot work, early.

Free of torch: a broken checkpoint is named within milliseconds, and the prompt can be printed from
the tokenizer and the template alone. Every fault is a ModelError of one line.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from ..kinds import SWITCH, Kind, number
from .hub import BytesDone, Repository, is_hub_name
from .template import ChatTemplate

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DEMO = "demo"
DEMO_FOLDER = Path(__file__).resolve().parent.parent / "demo"

_SMALL_FILES = ("*.json", "*.jinja")
_CODE_FILES = ("*.py",)
_WEIGHT_FILES = ("model*.safetensors", "model.safetensors.index.json")
_INDEX = "model.safetensors.index.json"
_LFS = b"version https://git-lfs"
_CAUSAL = re.compile(r"(ForCausalLM|LMHeadModel)$")
_GLM_TEMPLATES = {"glm4_moe": "glm-4.5", "glm4_moe_lite": "glm-4.7"}
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


_NOT_HONOURED: dict[str, Any] = {
    "num_beams": 1,
    "penalty_alpha": 0.0,
    "guidance_scale": 1.0,
    "dola_layers": None,
    "no_repeat_ngram_size": 0,
    "typical_p": 1.0,
    "top_h": None,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "bad_words_ids": [],
    "sequence_bias": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "max_new_tokens": None,
    "max_time": None,
    "stop_strings": [],
    "watermarking_config": None,
    "token_healing": False,
}
"""Settings of generation_config.json that glmchat does not follow, with the values that change nothing."""


_EXPERTS = ("n_routed_experts", "num_local_experts", "num_experts")
"""What kinds of models call the number of their experts in config.json."""


_WHOLE = Kind("a whole number", int, lambda v: isinstance(v, int) and not isinstance(v, bool))

_FOLLOWED: dict[str, Kind] = {
    "do_sample": SWITCH,
    "temperature": number(0, 100),
    "top_p": number(0, 1),
    "top_k": _WHOLE,
    "min_p": number(0, 1),
    "repetition_penalty": number(0.01, 100),
}
"""The settings of generation_config.json that SamplingDefaults holds, and what each may be."""


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What generation_config.json asks of sampling; None where it says nothing."""

    do_sample: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SamplingDefaults:
        known = {f.name: data[f.name] for f in fields(cls) if data.get(f.name) is not None}
        return cls(**known)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose small files were read and found sound. Weights are not loaded.

    `name` is what the person gave. `chat_template` is the checkpoint's own, as jinja source.
    `special_tokens` maps `bos_token`, `eos_token` … to their text, as templates want them. `shards` holds
    for each file of weights the bytes of its tensors by name; it is empty until there are weights.
    `repository` is where it is downloaded from.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    generation_config: dict[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    special_tokens: dict[str, str] = field(default_factory=dict)
    shards: tuple[dict[str, int], ...] = ()
    repository: Repository | None = field(default=None, compare=False)

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type") or "")

    @property
    def is_base(self) -> bool:
        """Whether its name says that it had no chat tuning (`GLM-4.5-Base`)."""
        names = (self.name, self.folder.name, str(self.config.get("_name_or_path") or ""))
        return any(re.search(r"[-_.]base/?$", name, re.IGNORECASE) for name in names)

    @property
    def context_length(self) -> int:
        """In tokens; 0 when the config does not say."""
        for key in ("max_position_embeddings", "n_positions", "max_sequence_length"):
            if isinstance(value := self.config.get(key), int):
                return max(0, value)
        return 0

    @property
    def stored_bytes(self) -> int:
        """Of all its weights on the disk; 0 where that is not known before they are downloaded."""
        metadata = _json(self.folder / _INDEX, optional=True).get("metadata")
        total = metadata.get("total_size") if isinstance(metadata, dict) else None
        if isinstance(total, int | float):
            return int(total)
        return sum(file.stat().st_size for file in self.folder.glob("model*.safetensors"))

    @property
    def sampling(self) -> SamplingDefaults:
        return SamplingDefaults.from_dict(self.generation_config)

    @property
    def ignored_settings(self) -> list[str]:
        """What generation_config.json asks for and glmchat does not do, for a log."""
        asked = self.generation_config
        return [
            name for name, neutral in _NOT_HONOURED.items() if asked.get(name, neutral) not in (neutral, None)
        ]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, read on first use."""
        from tokenizers import Tokenizer

        path = self.folder / "tokenizer.json"
        try:
            return Tokenizer.from_file(str(path))
        except Exception as e:  # the library raises plain Exception
            _check_fetched(path)
            raise ModelError(f"{path} cannot be read as a tokenizer ({e}); fetch the file again.") from e

    @cached_property
    def eos_token_ids(self) -> frozenset[int]:
        """Ids that end a turn: those of generation_config, config and tokenizer together."""
        ids: set[int] = set()
        for source in (self.generation_config, self.config):
            ids.update(_eos(source))
        if (eos := self.special_tokens.get("eos_token")) is not None:
            found = self.tokenizer.token_to_id(eos)
            ids.update(() if found is None else (found,))
        return frozenset(ids)


def resolve(
    model: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
    with_code: bool = False,
) -> Checkpoint:
    """The checkpoint that `model` names, without its weights: `demo`, an existing folder, or a hub name
    `org/name`, whose small files are downloaded into the Hugging Face cache, and its code if asked for.

    Raises: ModelError, one line, when it is missing, broken or of the wrong kind.
    """
    folder = DEMO_FOLDER if model == DEMO else Path(os.path.expanduser(model))
    with _readable():
        if folder.is_dir():
            return _read(model, folder)
        if folder.is_file():
            gguf = folder.suffix == ".gguf"
            hint = " GGUF files are not loaded; use a safetensors checkpoint." if gguf else ""
            raise ModelError(f"--model {model} is a file; give the folder of a checkpoint.{hint}")
    if not is_hub_name(model):
        raise ModelError(
            f"--model {model} is neither an existing folder nor a hub name like zai-org/GLM-4.5-Air; "
            f"check the spelling, or try --model {DEMO}."
        )
    repository = Repository(model, revision, token, offline=offline)
    files = (*_SMALL_FILES, *(_CODE_FILES if with_code else ()))
    return replace(_read(model, repository.download(files)), repository=repository)


def with_weights(checkpoint: Checkpoint, on_bytes: BytesDone | None = None) -> Checkpoint:
    """The same with its weights, which are downloaded if it is one of the hub's.

    Missing, pickled, incomplete or truncated ones are refused by file names, headers and sizes alone. Raises:
    ModelError, one line.
    """
    folder, name = checkpoint.folder, checkpoint.name
    if checkpoint.repository is not None:
        checkpoint.repository.download((*_SMALL_FILES, *_WEIGHT_FILES), on_bytes, checkpoint.stored_bytes)
    with _readable():
        shards = _shards(name, folder)
        return replace(checkpoint, shards=tuple(_tensor_bytes(folder / shard) for shard in shards))


def _shards(name: str, folder: Path) -> list[str]:
    """The files of its weights, all of which are there. Raises ModelError."""
    index = folder / _INDEX
    if index.is_file():
        weight_map = _json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelError(f"{index} has no weight_map; fetch the file again.")
        shards = sorted({str(shard) for shard in weight_map.values()})
        if missing := [s for s in shards if not (folder / s).is_file()]:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ModelError(
                f"{name} lacks {missing[0]}{more} of its {len(shards)} shards; the copy or download is "
                "incomplete, fetch it again."
            )
        return shards
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    raise ModelError(_no_weights(name, [p.name for p in folder.iterdir()]))


def choose_template(checkpoint: Checkpoint, choice: str = "auto") -> ChatTemplate:
    """The template that `--chat-template` means: auto is the checkpoint's own, ours for a GLM without one.

    Raises: ModelError for a base checkpoint, which only an explicit choice lets pass, and for one whose
    template is unknown; TemplateError for a template that cannot be read.
    """
    tokens = checkpoint.special_tokens
    if choice != "auto":
        return ChatTemplate.load(choice, special_tokens=tokens)
    override = "to use it all the same give --chat-template glm-4.5, glm-4.7 or a file"
    if checkpoint.is_base:
        raise ModelError(
            f"{checkpoint.name} is a base checkpoint, not a chat model: it continues text but was not taught "
            f"to answer; choose the version without -Base, or {override}."
        )
    if checkpoint.chat_template is not None:
        return ChatTemplate(checkpoint.chat_template, special_tokens=tokens)
    if (ours := _GLM_TEMPLATES.get(checkpoint.model_type)) is not None:
        return ChatTemplate.load(ours, special_tokens=tokens)
    raise ModelError(
        f"{checkpoint.name} brings no chat template, so it is probably not a chat model; choose an "
        f"instruct version, or {override}."
    )


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """What the system refuses inside is a ModelError."""
    try:
        yield
    except OSError as e:
        raise ModelError(
            f"{e.filename} cannot be read: {e.strerror or e}; check the name, and that you may read it."
        ) from None


def _read(name: str, folder: Path) -> Checkpoint:
    """Read and check the small files of a checkpoint."""
    _check_kind(name, folder)
    config = _json(folder / "config.json")
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list):
        architectures = [architectures]
    if architectures and not any(_CAUSAL.search(str(a)) for a in architectures):
        images = "vision_config" in config
        what = "reads images as well as text" if images else "does not write answers"
        raise ModelError(
            f"{name} is a {architectures[0]} ({config.get('model_type')}), which {what}; "
            "choose a causal language model such as zai-org/GLM-4.5-Air."
        )
    if not config.get("model_type"):
        raise ModelError(
            f"{folder / 'config.json'} names no model_type; it is not a transformers checkpoint."
        )
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(
            f"{name} has no tokenizer.json, which encodes the text; copy it from the original checkpoint, "
            "or convert an older tokenizer with AutoTokenizer.from_pretrained(...).save_pretrained(...)."
        )
    tokenizer_config = _json(folder / "tokenizer_config.json", optional=True)
    generation_config = _json(folder / "generation_config.json", optional=True)
    _check_values(folder, config, generation_config)
    return Checkpoint(
        name=name,
        folder=folder,
        config=config,
        generation_config=generation_config,
        chat_template=_chat_template(folder, tokenizer_config),
        special_tokens=_special_tokens(folder, tokenizer_config),
    )


def _check_values(folder: Path, config: Mapping[str, Any], generation_config: Mapping[str, Any]) -> None:
    """Refuse what no answer could be computed, sampled or ended by, before one is asked for."""
    used = config.get("num_experts_per_tok", 0)
    for name in _EXPERTS:
        there = config.get(name, 0)
        # With one expert or none the layers of some kinds are plain ones.
        if _WHOLE.accepts(used) and _WHOLE.accepts(there) and 1 < there < used:
            raise ModelError(
                f"{folder / 'config.json'}: num_experts_per_tok is {used}, and there are only {there} "
                f"experts ({name}); fetch or correct the file."
            )
    for name, kind in _FOLLOWED.items():
        value = generation_config.get(name)
        try:
            if value is not None:
                kind.read_value(value)
        except ValueError as e:
            raise ModelError(
                f"{folder / 'generation_config.json'}: {name} {e}; fetch or correct the file."
            ) from None
    for file, source in (("generation_config.json", generation_config), ("config.json", config)):
        if not all(map(_WHOLE.accepts, _eos(source))):
            raise ModelError(
                f"{folder / file}: eos_token_id must be a token's number or a list of them, not "
                f"{source['eos_token_id']!r}; fetch or correct the file."
            )


def _eos(source: Mapping[str, Any]) -> list[Any]:
    """What a config file says of it."""
    value = source.get("eos_token_id")
    return value if isinstance(value, list) else [] if value is None else [value]


def _check_kind(name: str, folder: Path) -> None:
    """Say what the folder is when it is not a transformers checkpoint."""
    files = [p.name for p in folder.iterdir()]
    if not files:
        raise ModelError(
            f"{name} is an empty folder; give one with config.json, tokenizer.json and *.safetensors."
        )
    if "config.json" in files and "adapter_config.json" in files:  # it would be applied by some, not by all
        raise ModelError(
            f"{name} holds a LoRA adapter beside a model; merge it into the model's weights, or take "
            "adapter_config.json out of the folder to use them without it."
        )
    if "config.json" in files:
        return
    if "adapter_config.json" in files:
        raise ModelError(
            f"{name} holds a LoRA adapter only; merge it into its base model and give that folder."
        )
    if any(f.endswith(".gguf") for f in files):
        raise ModelError(
            f"{name} holds GGUF files, which are not loaded; use the safetensors checkpoint, or run the GGUF "
            "with a server such as llama.cpp."
        )
    raise ModelError(f"{name} has no config.json, so it is not a checkpoint; give the folder that holds one.")


def _no_weights(name: str, files: Iterable[str]) -> str:
    suffixes = {Path(f).suffix for f in files}
    if suffixes & {".bin", ".pt", ".pth"}:
        return (
            f"{name} has only pickle weights (.bin, .pt), which can run code when opened and are refused; "
            "use a safetensors version of the checkpoint."
        )
    if ".gguf" in suffixes:
        return (
            f"{name} has only GGUF weights, which are not loaded; use the safetensors checkpoint, or run the "
            "GGUF with a server such as llama.cpp."
        )
    return f"{name} has no weights (model.safetensors or {_INDEX}); fetch the whole checkpoint."


def _tensor_bytes(path: Path) -> dict[str, int]:
    """The bytes of each tensor in a shard, which must be whole.

    A safetensors file is 8 bytes of header length, the JSON header, then exactly the tensors' bytes.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            _check_fetched(path)
            raise ModelError(f"{path} is cut short at {size:,} bytes; fetch it again.")
        try:
            header = json.loads(file.read(length))
            spans = {k: t["data_offsets"] for k, t in header.items() if k != "__metadata__"}
            sizes = {k: int(end - start) for k, (start, end) in spans.items()}
            end = max((end for _, end in spans.values()), default=0)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            raise ModelError(
                f"{path} is not a safetensors file (its header is broken); fetch it again."
            ) from None
    if size != 8 + length + end:
        raise ModelError(
            f"{path} holds {size:,} bytes where its header says {8 + length + end:,}; fetch it again."
        )
    return sizes


def _check_fetched(path: Path) -> None:
    """Raises ModelError for what git leaves in place of a large file where it lacks git-lfs."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise ModelError(
                f"{path} is a pointer of Git LFS, not the file itself; install git-lfs and run git lfs pull "
                f"in {path.parent}."
            )


def _chat_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """The template: its own file first, then the older places; of a named list, the one called default."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ModelError(f"{file} is not UTF-8 text; fetch it again or give --chat-template.") from None
    value = _json(folder / "chat_template.json", optional=True).get("chat_template")
    value = value or tokenizer_config.get("chat_template")
    if isinstance(value, list):
        named = {str(t.get("name")): t.get("template") for t in value if isinstance(t, dict)}
        value = named.get("default") or next(iter(named.values()), None)
    return value if isinstance(value, str) and value else None


def _special_tokens(folder: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    source = {**_json(folder / "special_tokens_map.json", optional=True), **tokenizer_config}
    tokens = {}
    for name in _SPECIAL_TOKENS:
        value = source.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            tokens[name] = value
    return tokens


def _json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if optional:
            return {}
        raise ModelError(f"{path} is missing; fetch the whole checkpoint.") from None
    except (OSError, ValueError, RecursionError) as e:
        raise ModelError(f"{path} cannot be read as JSON ({e}); fetch it again.") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object; fetch it again.")
    return value
