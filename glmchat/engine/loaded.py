"""A model that is loaded, and what a turn does with it: forwards, KV caches, and how much memory there is."""

from __future__ import annotations

import contextlib
import inspect
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import ModelError
from .compiled import CompiledStep
from .fused import use_fused, whole_layers
from .hybrid import pin
from .kv import copy_start, growing
from .latent import attends_to_latents
from .layer import run_all
from .memory import free_memory, peak_resident
from .mtp import MtpHead, compute_device, load_mtp
from .packing import is_packed, pack
from .quiet import quiet
from .ranks import Ranks
from .resident import onto_huge_pages
from .rotary import Angles
from .weights import active_bytes

_AHEAD = 2
"""Layers of a prompt that a GPU is sent before it needs them, so that it never waits."""


class Stopped(Exception):
    """A forward ended between two layers, as `LoadedModel.stoppable` says."""


class LoadedModel:
    """A model ready to run, and the few things that a turn does with it.

    `input_device` is where token ids go. `offloaded`: some weights live off the device that computes
    with them, so that each forward moves them. `hybrid`: a GPU computes, and a CPU the experts in its own
    memory. `on_close` undoes what loading left behind. `ranks` are the
    others that run each forward too, each with its share of the model.
    """

    def __init__(
        self,
        model: Any,
        on_close: contextlib.ExitStack,
        speculate: str,
        folder: Path,
        ranks: Ranks | None = None,
    ) -> None:
        import torch
        from transformers import DynamicCache

        self._torch = torch
        self.out_of_memory = torch.OutOfMemoryError if ranks is None else ()
        """What a forward raises that a GPU has no memory for, if it may be tried again in parts."""
        self._cache_class = DynamicCache
        self._model = model
        self._ranks = ranks
        self._on_close = on_close
        self.close = weakref.finalize(self, on_close.close)  # at the latest when the program ends
        placed = {str(d) for d in (getattr(model, "hf_device_map", None) or {"": model.device}).values()}
        gpus = sorted(f"cuda:{d}" if d.isdecimal() else d for d in placed - {"cpu", "disk"})
        self._gpus = gpus
        parts = [f"{len(gpus)} GPUs"] if len(gpus) > 1 else gpus
        self.devices = " + ".join(parts + [d for d in ("cpu", "disk") if d in placed])
        if ranks is not None:
            self.devices = f"{ranks.seat.count} {'GPUs' if gpus else 'cpu ranks'}"
        self.offloaded = any(p.is_meta for p in model.parameters())
        self.hybrid = bool(gpus) and "cpu" in placed and not self.offloaded
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.parameters = sum(p.numel() for p in model.parameters())  # where it is split, those of all
        self.input_device = compute_device(model.get_input_embeddings())
        self.vocabulary = len(model.get_input_embeddings().weight)
        accepted = inspect.signature(model.forward).parameters
        self._keeps_few = "logits_to_keep" in accepted
        self._takes_places = "position_ids" in accepted
        self._cache_name = next((n for n in ("past_key_values", "cache_params") if n in accepted), None)
        if self._cache_name is None:
            raise ModelError(
                f"{folder.name} ({model.config.model_type}) keeps what it has read in a way of its own, "
                "which glmchat does not know; choose another checkpoint."
            )
        no_mtp = speculate in ("off", "lookup") or ranks is not None  # it needs the whole of lm_head
        self.mtp = None if no_mtp else self._load_mtp(folder, speculate == "mtp")
        """The checkpoint's own MTP layer, if it is to guess tokens."""
        # Each forward of offloaded weights is slow, but more experts in it are slower still.
        auto = self.mtp is not None or not (self.offloaded or self.hybrid)
        self.speculates = speculate != "off" and (auto or speculate != "auto")
        """Tokens are guessed ahead."""
        layers = whole_layers(model)
        self._whole = layers and (layers, Angles(model.model.rotary_emb, model.model.norm.weight))
        """All layers and what they need, if they can be run in one call."""
        rope = getattr(model.config, "rope_parameters", None) or {}
        self.turns_wide: int | None = None
        """Of how many tokens on all of them are computed with other rotary frequencies; None: of none."""
        if rope.get("rope_type") == "longrope":
            self.turns_wide = rope.get("original_max_position_embeddings") or None
        self._latents = attends_to_latents(model)
        self._watched = False
        """A forward may be stopped between two layers."""
        self._paging: Iterator[None] | None = None
        self.compiled: CompiledStep | None = None
        """The decode step compiled, or yet to be; None where it is not going to be."""

    @property
    def own_bytes(self) -> int:
        """What the weights of this process take; less than all where other ranks have theirs."""
        parameters = self._model.parameters()
        return sum((p.to_local() if hasattr(p, "to_local") else p).nbytes for p in parameters)

    def ids(self, token_ids: Sequence[int]) -> Any:
        """The ids as a tensor of shape [1, n] where the model takes them."""
        return self._torch.tensor([token_ids], device=self.input_device)

    def new_cache(self) -> Any:
        """An empty KV cache with the layers that the model's config calls for."""
        return growing(self._cache_class(config=self._model.config), side_by_side=self._latents)

    def copy(self, source: Any, target: Any, length: int) -> None:
        """Put the first `length` tokens of a KV cache into an empty one."""
        copy_start(source, target, length)
        if self._ranks is not None:
            self._ranks.copy(source, target, length)

    def forward(self, ids: Any, cache: Any, rows: int = 1) -> tuple[Any, Any]:
        """Run new ids [1, n] after what `cache` holds, which grows by them.

        The logits [rows, vocab] of the last rows; and where there is an MTP layer, which builds on them, the
        states [1, n, hidden] of all, after the final norm.
        """
        with contextlib.nullcontext() if self._ranks is None else self._ranks.forward(ids, cache, rows):
            if self.compiled is not None and self.compiled.takes(ids, cache):
                out = self.compiled.forward(ids, cache, rows)
                if out is not None:
                    return out
            return self.forward_eager(ids, cache, rows)

    def forward_eager(self, ids: Any, cache: Any, rows: int = 1) -> tuple[Any, Any]:
        """The same, by the model as transformers runs it, or by its layers where those are all there is."""
        model = self._model
        if self._whole is not None:
            layers, table = self._whole
            x = model.model.embed_tokens(ids)
            angles = table.of(cache.get_seq_length(), ids.shape[1])
            after = None if self._watched else run_all(layers, x, angles, cache)
            if after is None:
                for layer in model.model.layers:
                    x = layer(x, past_key_values=cache, use_cache=True, position_embeddings=angles)
                after = x
            states = model.model.norm(after)
            return model.lm_head(states[:, -rows:])[0], states if self.mtp is not None else None
        if self.mtp is not None:
            states = model.model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
            return model.lm_head(states[:, -rows:])[0], states
        given: dict[Any, Any] = {self._cache_name: cache}
        if self._keeps_few:
            given["logits_to_keep"] = rows
        if self._takes_places:
            begin = cache.get_seq_length()
            given["position_ids"] = self._torch.arange(begin, begin + ids.shape[1], device=ids.device)[None]
        return model(input_ids=ids, use_cache=True, **given).logits[0, -rows:], None

    def compile_more(self) -> bool:
        """Compile the next part of the decode step, which takes some seconds. False: there is none left.

        Raises: ModelError where it was asked for and cannot be.
        """
        if self.compiled is None:
            return False
        with quiet():
            return self.compiled.compile_more()

    def page_more(self) -> bool:
        """Put more of the weights in a CPU's memory onto huge pages, and pin experts that a GPU is sent.

        Takes milliseconds. False: all are.
        """
        if self._paging is None:
            self._paging = self._page()
        return next(self._paging, False) is None

    def _page(self) -> Iterator[None]:
        packed, plain = self._torch.ops.mkldnn, self._torch.nn.Parameter  # some builds have none packed
        usual = [t for t in self.weights() if type(t) is plain and t.device.type == "cpu"]
        held = [t if (own := getattr(t, "held", None)) is None else own for t in usual]
        yield from onto_huge_pages([packed.data_ptr(t) if t.is_mkldnn else t.data_ptr() for t in held])
        yield from pin(self._model, self._on_close.callback)

    def join(self, states: Any, more: Any) -> Any:
        """States [1, n, hidden] and those of the tokens behind them."""
        return self._torch.cat([states, more], dim=1)

    @property
    def threads(self) -> int:
        """That compute on the CPU."""
        return int(self._torch.get_num_threads())

    @property
    def attention(self) -> str:
        """What computes it, as transformers names it: `sdpa`, or one of `attention`'s on a CPU."""
        return str(self._model.config._attn_implementation)

    def weights(self) -> list[Any]:
        """All weights, wherever they are, those of an MTP layer that is used included."""
        weights = list(self._model.parameters())
        if self.mtp is not None:
            weights += self.mtp.layer.parameters()
        return weights

    @property
    def weights_bytes(self) -> int:
        return sum(p.nbytes for p in self.weights())

    def active_bytes(self) -> Counter[str]:
        """By device, the weights that a forward of one token reads; see weights.active_bytes."""
        return active_bytes(self._model)

    def peak_memory(self) -> dict[str, int]:
        """Bytes that were in use at most: of `process` the resident set, of each GPU what torch took."""
        cuda = {d: self._torch.cuda.max_memory_allocated(d) for d in self._gpus if d.startswith("cuda")}
        return {"process": peak_resident(), **cuda}

    def spare_memory(self) -> int:
        """Bytes that KV caches of earlier conversations may take: a quarter of what is free."""
        cuda = {d for d in self._gpus if d.startswith("cuda")}
        if cuda:
            return sum(self._torch.cuda.mem_get_info(d)[0] for d in cuda) // 4
        return free_memory() // 4 // (1 if self._ranks is None else self._ranks.seat.count)

    def generator(self, seed: int | None, device: Any) -> Any:
        """A source of random numbers on `device`; without a seed, a different one each time."""
        generator = self._torch.Generator(device)
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        return generator

    def inference(self) -> Any:
        """The context in which turns run."""
        return self._torch.inference_mode()

    @contextlib.contextmanager
    def stoppable(self, cancelled: Callable[[], bool]) -> Iterator[None]:
        """Within it a forward that is cancelled ends before its next layer, by raising Stopped.

        A chunk of a prompt may take long, minutes where weights come from the disk. The layers that had run
        have taken its tokens into their part of the KV cache, the others have not. With other ranks, which
        would wait for this one in the layer, it goes to its end. A GPU is never sent more than _AHEAD layers
        that it has not begun, since none of them could be taken back.
        """
        begun: deque[Any] = deque()

        def check(_: Any, inputs: tuple[Any, ...]) -> None:
            if inputs and inputs[0].device.type == "cuda":
                begun.append(self._torch.cuda.current_stream(inputs[0].device).record_event())
                if len(begun) > _AHEAD:
                    begun.popleft().synchronize()
            if cancelled():
                raise Stopped

        layers = () if self._ranks else getattr(getattr(self._model, "model", None), "layers", None) or ()
        hooks = [layer.register_forward_pre_hook(check) for layer in layers]
        self._watched = True
        try:
            yield
        finally:
            self._watched = False
            for hook in hooks:
                hook.remove()

    @contextlib.contextmanager
    def decoding(self) -> Iterator[None]:
        """Within it, on a GPU, a token's experts are picked by copying their weights, not by grouping tokens.

        That is faster there for one token at a time; on a CPU, and in prefill, grouping is.
        """
        grouped = getattr(self._model.config, "_experts_implementation", None) == "grouped_mm"
        if self.input_device.type == "cpu" or not grouped:
            yield
            return
        self.use_experts("batched_mm")
        try:
            yield
        finally:
            self.use_experts("grouped_mm")

    def use_experts(self, kernel: str) -> None:
        """Compute experts by this kernel of transformers'."""
        self._model.set_experts_implementation(kernel)
        if self._ranks is not None:
            self._ranks.use_experts(kernel)

    def _load_mtp(self, folder: Path, wanted: bool) -> MtpHead | None:
        """Raises ModelError where it is `wanted` and not there."""
        fits = wanted or (not (self.offloaded or self.hybrid) and self._has_room_for_a_layer())
        head = load_mtp(self._model, folder) if fits else None
        if head is not None and head.device.type == "cpu" and is_packed(self._model):
            for _ in pack(head.layer):
                pass
            use_fused(head.layer)
        if wanted and head is None:
            raise ModelError(
                f"--speculate mtp: {folder.name} has no MTP layer that can be run; use lookup or auto."
            )
        return head

    def _has_room_for_a_layer(self) -> bool:
        """Whether one more decoder layer leaves enough for KV caches."""
        layers = getattr(getattr(self._model, "model", None), "layers", None)
        if not layers:
            return True
        size = sum(p.nbytes for p in layers[-1].parameters())
        device = compute_device(self._model.get_output_embeddings())
        on_gpu = device.type == "cuda"
        free: int = self._torch.cuda.mem_get_info(device)[0] if on_gpu else free_memory()
        return bool(free >= 3 * size)

    def free_memory(self) -> None:
        """Give memory that torch keeps for reuse back to the device, after a fault."""
        if self._torch.cuda.is_available():
            self._torch.cuda.empty_cache()
