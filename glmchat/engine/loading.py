"""Loads a checkpoint's weights with transformers and accelerate, placed as asked, with progress.

Only safetensors are read and no code of the checkpoint runs unless allowed. What transformers reports
by warnings (missing weights, a map with holes) is an error here, of one line.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..events import LoadProgress
from ..glm.checkpoints import Checkpoint
from ..locks import locked
from .attention import use_own_attention
from .compiled import plan_compiling
from .environ import bring_torch
from .experts import experts_packed
from .faults import one_line
from .fused import use_fused
from .hybrid import compute_where_they_are
from .loaded import LoadedModel
from .memory import LoadOptions
from .packing import can_pack, pack, use_packed_experts
from .placing import place
from .progress import OnProgress, WeightsBar
from .quiet import quiet
from .ranks import OnBroken, Ranks, Seat, hide_gpus
from .resident import FilePages, tight_heap

_OFFLOADED = "glmchat-offloaded-"
"""How the folders begin that weights are offloaded to; nothing else of a person's is called so."""
SMALL = 1 << 26
"""Bytes of weights that one CPU thread runs as fast as several, which mostly wait for each other; for long
where something else wants the CPU as well."""


def load_model(
    checkpoint: Checkpoint,
    options: LoadOptions,
    on_progress: OnProgress,
    on_broken: OnBroken = lambda _: None,
) -> LoadedModel:
    """Load the weights of `checkpoint`; with `parallel`, a share of them as rank 0, and start the others.

    Raises: UsageError for options that cannot be read; ModelError when the model is of a kind that
    transformers does not know, does not fit, or lacks weights. For `on_broken` see Ranks.
    """
    on_progress(LoadProgress("importing torch and transformers"))
    with contextlib.ExitStack() as undo, quiet(), one_line(checkpoint.name, "loading"):
        if options.parallel != "off" and options.device_map == "cpu":
            hide_gpus()
        bring_torch()
        if options.parallel != "off":
            ranks = Ranks(checkpoint, options, on_broken)
            undo.callback(ranks.close)
            config = _config(checkpoint, options)  # which imports for seconds, as the others do meanwhile
            with ranks.loading(config) as share:
                model = _load_weights(checkpoint, options, config, on_progress, **share)
            return LoadedModel(model, undo.pop_all(), options.speculate, checkpoint.folder, ranks)
        config = _config(checkpoint, options)
        device_map, max_memory = place(checkpoint.folder, config, options)
        offload_folder = options.offload_dir and undo.enter_context(_offload_folder(options.offload_dir))
        model = _load_weights(
            checkpoint,
            options,
            config,
            on_progress,
            device_map=device_map,
            max_memory=max_memory,
            offload_folder=str(offload_folder) if offload_folder else None,
        )
        loaded = LoadedModel(model, undo.pop_all(), options.speculate, checkpoint.folder)
        loaded.compiled = plan_compiling(loaded, model, options)
        if loaded.compiled is not None and options.compile == "on":
            on_progress(LoadProgress("compiling the decode step"))
            while loaded.compile_more():
                on_progress(LoadProgress("compiling the decode step"))
        return loaded
    raise AssertionError("unreachable")  # mypy: ExitStack may swallow exceptions, ours does not


def load_share(
    checkpoint: Checkpoint, options: LoadOptions, seat: Seat, on_ready: Callable[[], None]
) -> LoadedModel:
    """The share of a rank other than 0, which calls `on_ready` before it joins. Raises as `load_model`."""
    with quiet(), one_line(checkpoint.name, "loading"):
        bring_torch()
        config = _config(checkpoint, options)
        on_ready()
        with seat.taken() as share:
            model = _load_weights(checkpoint, options, config, lambda _: None, **share)
        return LoadedModel(model, contextlib.ExitStack(), "off", checkpoint.folder)
    raise AssertionError("unreachable")


def _config(checkpoint: Checkpoint, options: LoadOptions) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: F401  # brings what takes long to import

    config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=options.trust_remote_code)
    # Others are packages that this machine may lack, or code that transformers would fetch from the hub.
    if getattr(config, "_attn_implementation", None) not in ("eager", "sdpa"):
        config._attn_implementation = None
    return config


def _load_weights(
    checkpoint: Checkpoint, options: LoadOptions, config: Any, on_progress: OnProgress, **placed: Any
) -> Any:
    """The model, by transformers' from_pretrained, which `placed` tells where to put it."""
    import torch
    from transformers import AutoModelForCausalLM

    threads = _usual_threads()
    on_progress(LoadProgress("loading weights"))
    pages = FilePages(checkpoint.folder)
    usual = not options.trust_remote_code and getattr(config, "quantization_config", None) is None
    packs = placed.get("device_map") == {"": "cpu"} and options.compile != "on" and usual
    packed = experts_packed(config.model_type) if packs else contextlib.nullcontext()
    with tight_heap(), _weights_progress(checkpoint, on_progress, pages), packed:
        model, info = AutoModelForCausalLM.from_pretrained(
            checkpoint.folder,
            config=config,
            dtype="auto" if options.dtype == "auto" else getattr(torch, options.dtype),
            use_safetensors=True,
            trust_remote_code=options.trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
            **placed,
            **({"attn_implementation": options.attn} if options.attn else {}),
        )
    _check_complete(checkpoint.name, info)
    with tight_heap():
        for _ in compute_where_they_are(model):
            on_progress(LoadProgress("arranging weights"))
    if not options.attn:
        use_own_attention(model)
    if options.compile != "on" and can_pack(model):  # compiled code has an order of its own
        with tight_heap():
            for _ in pack(model, pages.copied):
                on_progress(LoadProgress("arranging weights"))
        use_packed_experts(model)
        use_fused(model)
    assert not any(hasattr(t, "apart") for t in model.parameters()), "experts that nobody packed are empty"
    pages.settle()
    small = all(t.device.type == "cpu" for t in model.parameters()) and _size(model) < SMALL
    torch.set_num_threads(1 if small else threads)  # of this thread, which will run it, and of new ones
    return model.eval()


def _size(model: Any) -> int:
    return sum(t.nbytes for t in model.parameters())


@functools.cache
def _usual_threads() -> int:
    """That torch would take, before a small model changed it."""
    import torch

    return torch.get_num_threads()


@contextlib.contextmanager
def _offload_folder(offload_dir: str) -> Iterator[Path]:
    """A new folder below `--offload-dir`, for the copies that transformers writes; it goes with the model.

    So does what processes left there that were killed, as happens where memory runs out: their folders are
    those that nobody has locked.
    """
    with contextlib.ExitStack() as ours:
        try:
            parent = Path(os.path.expanduser(offload_dir))
            parent.mkdir(parents=True, exist_ok=True)
            with locked(parent, wait=True):  # a folder of another's is not there before it is locked
                for other in parent.glob(f"{_OFFLOADED}{8 * '?'}"):
                    with contextlib.suppress(OSError), locked(other) as left:
                        if left:
                            shutil.rmtree(other, ignore_errors=True)
                folder = Path(tempfile.mkdtemp(prefix=_OFFLOADED, dir=parent))
                ours.enter_context(locked(folder))
        except OSError as e:
            raise ModelError(f"--offload-dir {offload_dir} cannot be written: {e.strerror or e}.") from None
        ours.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


def _check_complete(name: str, info: dict[str, Any]) -> None:
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ModelError(
            f"{name} lacks weights that its config.json calls for ({', '.join(missing[:3])}{more}); "
            "fetch the whole checkpoint, or a newer transformers if the model is new."
        )


@contextlib.contextmanager
def _weights_progress(checkpoint: Checkpoint, on_progress: OnProgress, pages: FilePages) -> Iterator[None]:
    """Report transformers' bar "Loading weights" to `on_progress`, and what is loaded to `pages`."""
    from transformers.utils import logging as hf_logging

    previous = hf_logging.set_tqdm_hook(
        lambda factory, args, kwargs: WeightsBar(
            checkpoint.shards, on_progress, pages.loaded, *args, **kwargs
        )
    )
    try:
        yield
    finally:
        hf_logging.set_tqdm_hook(previous)
