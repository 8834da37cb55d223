"""GLM-4.5's next-token-prediction layer (MTP): from a hidden state of the trunk and the token that follows,
the token after that.

transformers leaves the layer's weights on disk. They stand behind the trunk's own, as layer 92 of GLM-4.5
and layer 46 of GLM-4.5-Air: a decoder layer, and before it the projection that joins token and state.
"""

from __future__ import annotations

import copy
import ctypes
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from ..errors import ModelError
from . import native
from .attention import NATIVE
from .kv import close, growing, opened
from .rotary import Angles

WHOLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"


class MtpHead:
    """The layer on a loaded trunk, whose embedding, lm_head and rotary embedding it shares.

    `layer` holds its weights, named as on disk but for the decoder layer, which is `block`. `device` is
    where it computes: there come hidden states and logits from.
    """

    def __init__(self, model: Any) -> None:
        """With weights that are yet to be filled in."""
        import torch
        from torch import nn

        self._model = model
        self._config = _config_of_one_layer(model.config)
        self.device = compute_device(model.get_output_embeddings())
        size, eps = self._config.hidden_size, self._config.rms_norm_eps
        norm, block = type(model.model.norm), type(model.model.layers[-1])
        with torch.device("meta"):
            self.layer: Any = nn.ModuleDict(
                {
                    "enorm": norm(size, eps=eps),
                    "hnorm": norm(size, eps=eps),
                    "eh_proj": nn.Linear(2 * size, size, bias=False),
                    "block": block(self._config, 0),
                    "shared_head": nn.ModuleDict({"norm": norm(size, eps=eps)}),
                }
            )
        empty = {
            name: torch.empty(t.shape, dtype=_dtype(name, model), device=self.device)
            for name, t in self.layer.state_dict().items()
        }
        self.layer.load_state_dict(empty, assign=True)
        self.layer.requires_grad_(False).eval()
        self._norms: list[Any] = [self.layer["enorm"], self.layer["hnorm"], self.layer["shared_head"].norm]
        self._projection, self._block = self.layer["eh_proj"], self.layer["block"]
        self._kernel: str | None = None
        """For experts."""
        self._drafter: native.Drafter | Literal[False] | None = None
        """What guesses in one call; None until it is asked for, and False where that cannot be."""
        self._angles = Angles(model.model.rotary_emb, empty["eh_proj.weight"])

    def tensors(self) -> dict[str, Any]:
        """The weights by their names on disk, less `model.layers.N.`: views, so that they can be filled."""
        return dict(
            piece for name, tensor in self.layer.state_dict().items() for piece in _as_stored(name, tensor)
        )

    def new_cache(self) -> Any:
        """An empty KV cache of this one layer, which `crop(-n)` cuts back by n entries."""
        from transformers import DynamicCache

        return growing(DynamicCache(config=self._config))

    def forward(self, ids: Any, hidden: Any, cache: Any) -> Any:
        """Hidden states [1, n, H], from which `logits` makes the tokens after `ids`.

        ids: [1, n], the token after each position. hidden: [1, n, H], for those positions the trunk's
        state after its final norm, or for a further draft what this function gave. `cache` grows by n; its
        length before is the first position, counted from the first token that it was given.
        """
        past, rows = cache.get_seq_length(), ids.shape[1]
        if self.device.type == "cpu" and (rows == 1 or self._config._attn_implementation == NATIVE):
            x = self._joined(ids, hidden)
            return self._through(x, None, cache, self._angles.of(past, rows))
        return self.run(ids, hidden, cache, _positions(past, rows, self.device))

    def run(self, ids: Any, hidden: Any, cache: Any, positions: Any, mask: Any = None) -> Any:
        """As `forward`, a batch at positions [1, n]; causal unless a mask [1, 1, n, cached + n] comes."""
        from transformers.masking_utils import create_causal_mask

        x = self._joined(ids, hidden)
        angles = self._model.model.rotary_emb(x, positions)  # on its own device, where there are several
        mask = create_causal_mask(
            config=self._config,
            inputs_embeds=x,
            attention_mask=mask,
            past_key_values=cache,
            position_ids=positions,
        )
        return self._through(x, mask, cache, tuple(t.to(self.device) for t in angles))

    def _joined(self, ids: Any, hidden: Any) -> Any:
        """Tokens [1, n] and the trunk's states before them, as the decoder layer takes them [1, n, H]."""
        import torch

        embedding = self._model.get_input_embeddings()
        tokens = embedding(ids.to(compute_device(embedding))).to(self.device)
        return self._projection(
            torch.cat([self._norms[0](tokens), self._norms[1](hidden.to(self.device))], dim=-1)
        )

    def _through(self, x: Any, mask: Any, cache: Any, angles: Any) -> Any:
        """The decoder layer and the norm behind it."""
        kernel = getattr(self._model.config, "_experts_implementation", None)
        if kernel != self._kernel:  # the trunk may be switched between prefill and decoding
            self._config._experts_implementation = self._kernel = kernel
        x = self._block(
            x, attention_mask=mask, past_key_values=cache, use_cache=True, position_embeddings=angles
        )
        return self._norms[2](x)

    def draft(self, ids: Sequence[int], hidden: Any, cache: Any, count: int) -> list[int] | None:
        """`count` guesses in one call of a kernel, the first of what follows `ids`; None where there is none.

        ids and hidden are as for `forward`; `cache` grows by those and by all guesses but the last.
        """
        if self._drafter is None:
            self._drafter = self._described() or False
        past, more = cache.get_seq_length(), len(ids) + count - 1
        buffers = opened(cache, 0, more) if self._drafter else None
        if not self._drafter or buffers is None:
            return None
        guesses = native.draft(self._drafter, ids, hidden, count, self._angles.of(past, more), buffers, past)
        close(cache, 0, more)
        return guesses

    def _described(self) -> native.Drafter | None:
        """The layer as the kernel knows it, if all of it is in BF16 on a CPU, and packed."""
        block, model = self._block, self._model
        table, head = model.get_input_embeddings(), model.get_output_embeddings()
        joining, to_logits = (getattr(m.weight, "native", None) for m in (self._projection, head))
        plain = [m.weight for m in (table, *self._norms, *([] if to_logits else [head]))]
        whole = getattr(block.forward, "whole", None)
        if (
            whole is None
            or joining is None
            or not all(map(native.multiplies, plain))
            or head.bias is not None
        ):
            return None
        drafter = native.Drafter(table=table.weight.data_ptr(), vocabulary=len(head.weight))
        drafter.layer, drafter.joining = ctypes.pointer(whole), joining
        for name, norm in zip(("token", "state", "last"), self._norms, strict=True):
            setattr(drafter, f"{name}_norm", norm.weight.data_ptr())
            setattr(drafter, f"{name}_eps", norm.variance_epsilon)
        if to_logits:
            drafter.head = to_logits
        else:
            drafter.plain = head.weight.data_ptr()
        return drafter

    def logits(self, hidden: Any) -> Any:
        """[1, n, V] of states [1, n, H] that `forward` gave, by the trunk's lm_head."""
        return self._model.get_output_embeddings()(hidden)


def _positions(begin: int, count: int, device: Any) -> Any:
    import torch

    return torch.arange(begin, begin + count, device=device)[None]


def load_mtp(model: Any, folder: Path) -> MtpHead | None:
    """The MTP layer of the glm4_moe checkpoint in `folder`, for `model`, which was loaded from it.

    None where there is none: by config.json, or as its weights were left out. None for a quantised
    checkpoint too, whose packed weights only the quantiser can read. Raises: ModelError when it is not whole.
    """
    if not _has_layer(folder):
        return None
    prefix = f"model.layers.{model.config.num_hidden_layers}."
    with ExitStack() as files:
        stored = _Tensors(folder, prefix, files)
        if "eh_proj.weight" not in stored and "enorm.weight" not in stored:
            return None  # as where only the trunk was saved again; config.json then still names the layer
        head = MtpHead(model)
        pieces = head.tensors()
        missing = sorted(name for name in pieces if name not in stored)
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ModelError(
                f"{folder.name} lacks {prefix}{missing[0]}{more} of its MTP layer; fetch the whole "
                "checkpoint, or set num_nextn_predict_layers to 0 in its config.json to do without."
            )
        for name, piece in pieces.items():
            tensor = stored.read(name)
            if tensor.shape != piece.shape:
                raise ModelError(
                    f"{folder.name} holds {prefix}{name} in the shape {list(tensor.shape)} where its "
                    f"config.json calls for {list(piece.shape)}; fetch the checkpoint again."
                )
            piece.copy_(tensor)
    return head


def compute_device(module: Any) -> Any:
    """Where `module` computes. Offloaded weights are on meta and follow the input there."""
    import torch

    if module.weight.device.type != "meta":
        return module.weight.device
    return torch.device(getattr(getattr(module, "_hf_hook", None), "execution_device", None) or "cpu")


class _Tensors:
    """The stored tensors below `prefix`, by the rest of their names."""

    def __init__(self, folder: Path, prefix: str, files: ExitStack) -> None:
        self._folder, self._prefix, self._files = folder, prefix, files
        self._open: dict[str, Any] = {}
        index = folder / INDEX_FILE
        if index.is_file():
            places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        else:
            places = dict.fromkeys(self._file(WHOLE_FILE).keys(), WHOLE_FILE)
        self._places = {k.removeprefix(prefix): v for k, v in places.items() if k.startswith(prefix)}

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def read(self, name: str) -> Any:
        full_name, file = self._prefix + name, self._places[name]
        try:
            return self._file(file).get_tensor(full_name)
        except Exception as e:  # safetensors has an error of its own, OSError where the file is gone
            reason = " ".join(str(e).split())
            raise ModelError(
                f"{self._folder.name} has no readable {full_name} in {file} ({reason}); fetch the file again."
            ) from None

    def _file(self, name: str) -> Any:
        from safetensors import safe_open

        if name not in self._open:
            opened = safe_open(self._folder / name, framework="pt")
            self._open[name] = self._files.enter_context(opened)
        return self._open[name]


def _as_stored(name: str, tensor: Any) -> Iterator[tuple[str, Any]]:
    """The names on disk of what `tensor` is made of, each with the part of it.

    Experts stand one by one on disk. In memory they are one tensor [expert, out, in], gate above up.
    """
    parent, _, kind = name.removeprefix("block.").rpartition(".")
    if not parent.endswith("experts") or tensor.ndim != 3:
        yield name.removeprefix("block."), tensor
        return
    for number, expert in enumerate(tensor):
        kinds = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)
        for part, own in zip(expert.chunk(len(kinds)), kinds, strict=True):
            yield f"{parent}.{number}.{own}.weight", part


def _has_layer(folder: Path) -> bool:
    """Whether config.json tells of an MTP layer that can be run."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    count = config.get("num_nextn_predict_layers", config.get("num_mtp_layers"))  # transformers' own name
    return config.get("model_type") == "glm4_moe" and bool(count) and "quantization_config" not in config


def _config_of_one_layer(config: Any) -> Any:
    """The trunk's config for a model of one layer, with experts."""
    config = copy.deepcopy(config)
    config.num_hidden_layers = 1
    config.first_k_dense_replace = 0
    return config


def _dtype(name: str, model: Any) -> Any:
    """The trunk's, but the router's choice bias is kept in FP32, as there."""
    import torch

    return torch.float32 if name.endswith("e_score_correction_bias") else model.dtype
