"""Where the parts of a model go that one GPU has no room for: to main memory, experts and nothing else.

accelerate fills the GPU layer by layer, and moves all weights of the other layers there for each token. Nine
tenths of such a model are routed experts, of which a token needs few: a GPU of 24 GB holds all else of
GLM-4.5-Air, and what is left is little enough for a CPU to compute.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..glm.checkpoints import Checkpoint
from .environ import bring_torch
from .hybrid import experts_of
from .memory import DeviceMap, LoadOptions, free_memory, total_memory

log = logging.getLogger(__name__)

_SHARE = 0.92
"""Of a GPU's free memory; the rest is for what is computed there."""
_CONTEXT = 32768
"""Tokens for whose KV cache room is left."""
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_MUCH = 4
"""Times what is on the disk: twice where BF16 becomes FP32, and room for all else."""


def check_room(checkpoint: Checkpoint, options: LoadOptions) -> None:
    """Raises ModelError where the weights fit nowhere, which is known before they are downloaded."""
    needed = checkpoint.stored_bytes * _times(checkpoint.config, options.dtype)
    room = total_memory()
    if options.offload_dir is not None or needed <= room:
        return
    bring_torch()
    import torch

    for kind in (torch.cuda, torch.xpu):
        gpus = [kind.get_device_properties(n) for n in range(kind.device_count())]
        room += sum(gpu.total_memory for gpu in gpus)
    if needed > room:
        raise ModelError(
            f"The weights of {checkpoint.name} take {needed / 1e9:,.0f} GB, and this machine has "
            f"{room / 1e9:,.0f} GB of memory; choose a smaller checkpoint, or name a folder for the rest "
            "with --offload-dir: it is read from there for each token."
        )


def place(folder: Path, config: Any, options: LoadOptions) -> tuple[DeviceMap, dict[int | str, int] | None]:
    """The device map with which to load the checkpoint in `folder`, as asked for or as planned here, and what
    each device may hold.

    Raises: ModelError for a map, or a limit, that does not fit the model or this machine.
    """
    import torch

    device_map, most = options.placement()
    _check_devices(device_map, most)
    if isinstance(device_map, str):
        if most is None and not torch.accelerator.is_available():
            return _place_on_cpu(config, options)
        if device_map == "auto" and torch.cuda.is_available() and (most or not _is_small(folder)):
            return _plan(config, options, most) or device_map, most
    elif set(device_map) != {""}:
        _check_modules(device_map, _on_meta(config, options))
    return device_map, most


def _place_on_cpu(config: Any, options: LoadOptions) -> tuple[DeviceMap, dict[int | str, int] | None]:
    """All of it, or, if there is a folder for the rest, as much as there is memory for."""
    if options.offload_dir is not None:
        model = _on_meta(config, options)
        room = int(_SHARE * free_memory()) - _cache_bytes(model)
        if _size(model) > room:
            return "auto", {"cpu": max(0, room)}
    return {"": "cpu"}, None


def _times(config: dict[str, Any], dtype: str) -> float:
    """How many bytes a byte on the disk becomes in memory, at least."""
    stored = config.get("dtype") or config.get("torch_dtype")
    if dtype == "auto" or stored not in _BYTES or "quantization_config" in config:
        return 1
    return _BYTES[dtype] / _BYTES[stored]


def _is_small(folder: Path) -> bool:
    """Whether it fits on the first GPU in any case: to plan takes a few tenths of a second."""
    import torch

    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return _MUCH * stored < torch.cuda.mem_get_info(0)[0]


def _plan(
    config: Any, options: LoadOptions, most: dict[int | str, int] | None
) -> dict[str, int | str] | None:
    from accelerate.utils import get_max_memory

    try:
        model = _on_meta(config, options)
    except Exception:  # a model with code of its own need not be made for that
        log.debug("the model's parts cannot be planned for", exc_info=True)
        return None
    limits = get_max_memory(most)
    if most is None:
        limits["cpu"] = min(limits["cpu"], free_memory())  # of which a container may have less
    return plan_experts(model, limits, chosen=most is not None)


def _on_meta(config: Any, options: LoadOptions) -> Any:
    """The model without weights."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype = config.dtype if options.dtype == "auto" else getattr(torch, options.dtype)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=options.trust_remote_code
        )


def plan_experts(model: Any, most: dict[int | str, int], *, chosen: bool) -> dict[str, int | str] | None:
    """A device map that puts experts into main memory, for a `model`, on meta, too large for the one GPU.

    `most` bytes on each device; of weights alone if they were `chosen` by a person, else there is room left
    for all that comes beside them. None where that is not for us to decide: it fits, or there are several
    GPUs, or there is no room even so, or nothing that can be computed apart.
    """
    from accelerate import infer_auto_device_map

    gpus = [device for device in most if isinstance(device, int)]
    experts = {name: _size(module) for name, module in experts_of(model).items()}
    quantised = getattr(model.config, "quantization_config", None) is not None  # of other sizes than these
    if len(gpus) != 1 or "cpu" not in most or not experts or quantised:
        return None
    usual = infer_auto_device_map(
        model, max_memory=dict(most), no_split_module_classes=model._no_split_modules
    )
    if set(usual.values()) == set(gpus):
        return None
    (gpu,) = gpus
    room = most[gpu] if chosen else int(_SHARE * most[gpu]) - _cache_bytes(model)
    room -= _size(model) - sum(experts.values())
    left = dict(experts)
    for name, size in experts.items():
        if size > room:
            break
        room -= size
        del left[name]
    if room < 0 or sum(left.values()) > most["cpu"]:
        return None
    return {**dict.fromkeys(but_experts(model, set(left)), gpu), **dict.fromkeys(left, "cpu")}


def but_experts(module: Any, without: set[str], name: str = "") -> Iterator[str]:
    """The names of the largest modules below this one, and of its own tensors, that are all but `without`."""
    for child_name, child in module.named_children():
        full = f"{name}.{child_name}" if name else child_name
        if any(other.startswith(f"{full}.") for other in without):
            yield from but_experts(child, without, full)
        elif full not in without:
            yield full
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    yield from (f"{name}.{tensor}" if name else tensor for tensor, _ in tensors)


def _size(module: Any) -> int:
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


def _cache_bytes(model: Any) -> int:
    """Of the KV cache for _CONTEXT tokens, or as many as the model can take."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    tokens = min(_CONTEXT, getattr(config, "max_position_embeddings", _CONTEXT))
    each = 2 * heads * size
    if any(hasattr(module, "expand_kv") for module in model.modules()):  # of latents
        each = config.kv_lora_rank + config.qk_rope_head_dim
    return int(config.num_hidden_layers * each * model.dtype.itemsize * tokens)


def _check_devices(device_map: DeviceMap, max_memory: dict[int | str, int] | None) -> None:
    """Every device that the options name must exist."""
    import torch

    named = [] if isinstance(device_map, str) else [("--device-map", d) for d in device_map.values()]
    for option, device in named + [("--max-memory", d) for d in max_memory or ()]:
        if device in ("cpu", "disk"):
            continue
        kind, _, number = (f"cuda:{device}" if str(device).isdecimal() else str(device)).partition(":")
        backend = getattr(torch, kind)
        count = backend.device_count() if backend.is_available() else 0
        if int(number or 0) >= count:
            have = f"this machine has {count}" if count else f"this torch finds no {kind} device here"
            raise ModelError(f"{option} names {device}, but {have}; use auto or cpu.")


def _check_modules(device_map: dict[str, int | str], model: Any) -> None:
    """An explicit map must give every weight a device, and name only what `model` has."""
    unused = set(device_map) - {name for name, _ in model.named_modules()}
    if unused:
        raise ModelError(
            f"--device-map names {min(unused)!r}, which the model does not have; its parts are called like "
            "model.embed_tokens, model.layers.0, model.norm and lm_head."
        )
    for name, _ in model.named_parameters():
        parents = {"", *(name[:i] for i, c in enumerate(name) if c == ".")}
        if not parents & set(device_map):
            raise ModelError(f'--device-map gives {name} no device; add it, or "" for all the rest.')
