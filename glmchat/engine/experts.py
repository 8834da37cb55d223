"""Experts packed right from a checkpoint's files, on a CPU.

Checkpoints hold experts one by one, and so are they packed. transformers, for which those of a layer are one
tensor, would copy each twice in between, which takes as long as all else of a load.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from .packing import PARTS, fits, is_better, is_usual, packed


@contextlib.contextmanager
def experts_packed(model_type: str) -> Iterator[None]:
    """Within it transformers loads a model, all of it for a CPU, with experts that `pack` finds packed."""
    from transformers import conversion_mapping as known
    from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter

    usual, ours = (known.get_checkpoint_conversion_mapping(model_type) for _ in range(2))
    found = False
    for entry in ours or ():
        if isinstance(entry, WeightConverter) and is_better():
            steps = [(type(step), getattr(step, "dim", None)) for step in entry.operations]
            if steps in ([(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)]):
                entry.operations = [_pack_apart(entry.operations)]
                found = True
    if not found:
        yield
        return
    users = set(known.USER_REGISTERED_MAPPINGS)
    known.register_checkpoint_conversion_mapping(model_type, ours, overwrite=True)
    try:
        yield
    finally:
        known.register_checkpoint_conversion_mapping(model_type, usual, overwrite=True)
        known.USER_REGISTERED_MAPPINGS.intersection_update(users)


def _pack_apart(usual: list[Any]) -> Any:
    """A step of transformers' that gives the experts of a layer packed, or what the `usual` ones give."""
    import torch
    from torch import nn
    from transformers.core_model_loading import ConversionOps

    class PackApart(ConversionOps):  # type: ignore[misc]
        @torch.no_grad()
        def convert(
            self,
            input_dict: dict[str, Any],
            source_patterns: list[str],
            target_patterns: list[str],
            full_layer_name: str,
            model: Any,
            **more: Any,
        ) -> dict[str, Any]:
            module, _, part = full_layer_name.rpartition(".")
            parts = [input_dict.get(pattern, []) for pattern in source_patterns]
            usually = model.dtype == torch.bfloat16 and is_usual(model.get_submodule(module))
            if part in PARTS and usually and _are_alike(parts):
                # It has the shape of all together, and nothing in it.
                shape = len(parts[0]), sum(part[0].shape[0] for part in parts), parts[0][0].shape[1]
                whole: Any = nn.Parameter(parts[0][0].new_empty(()).expand(shape), requires_grad=False)
                whole.apart = nn.ParameterList(packed(expert) for expert in zip(*parts, strict=True))
                return {target_patterns[0]: whole}
            for step in usual:
                input_dict = step.convert(
                    input_dict,
                    source_patterns=source_patterns,
                    target_patterns=target_patterns,
                    full_layer_name=full_layer_name,
                    model=model,
                    **more,
                )
            return input_dict

    return PackApart()


def _are_alike(parts: list[list[Any]]) -> bool:
    """Whether they are matrices that can be packed, of one shape for each part, and as many of each."""
    return all(
        len(part) == len(parts[0]) > 0
        and all(t.ndim == 2 and t.shape == part[0].shape and fits(t) and t.device.type == "cpu" for t in part)
        for part in parts
    )
