"""The decode step, compiled by torch, and on a GPU recorded as a CUDA graph: Python launches no kernels then.

There a message of a few tokens is prefilled so, too: it takes longer to launch its kernels than to run them.

All of this is done in the inference thread, part by part while nobody waits, because torch cannot do it
beside a forward: while it traces it replaces methods of every nn.Module, and sets a flag of the whole process
that transformers asks for. What was compiled is kept on disk, so that only the first run takes long.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from .graphs import Recorder
from .kv import is_whole, use, whole
from .step import FEW, Step, in_parts, run

if TYPE_CHECKING:
    from .loaded import LoadedModel
    from .memory import LoadOptions

log = logging.getLogger(__name__)

KINDS = ("glm4_moe",)
LENGTHS = (1024, 8192, 32768)
"""Tokens in the cache where the speed is measured; each result is believed for four times as many."""
MESSAGES, _BEHIND = (32, 64), LENGTHS[1]
"""Tokens of a message with which the speed of its prefill is measured, and how many it comes after."""
MESSAGE_STEP = 8
"""Messages are made up to multiples of so many tokens, so that a recording serves more than one of them."""
_PROMPT, _STEPS, _MORE_STEPS = 20, (1, 1, 1, 1), (3, 2)  # tokens at once on which both are compared
_MESSAGE = (FEW + 3,)  # and of a message
_NEAR_EXACT, _NEAR = 1e-3, 0.1  # how far logits may be off, of their norm: FP32; others, in which rounding
# alone sends some tokens to other experts
_UNTIMED, _TIMED = 3, 7
_OPTIONS: dict[str, Any] = {"realize_reads_threshold": 1}
"""What many sums share, an expert's gate for one, is computed once and not anew in each."""
_REFUSAL = "--compile on: this model cannot be compiled: {}; use auto or off."
_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def plan_compiling(loaded: LoadedModel, model: Any, options: LoadOptions) -> CompiledStep | None:
    """What is to be compiled of `loaded`, whose model is `model`; None: nothing.

    Raises: ModelError where the options ask for it and it cannot be.
    """
    asked = options.compile == "on"
    on_gpu = loaded.input_device.type != "cpu"
    if options.compile == "off" or not (asked or on_gpu):
        return None  # on a CPU it takes longer to compile than it saves
    why = why_not(model, offloaded=loaded.offloaded, attn=options.attn)
    if why is None:
        return CompiledStep(loaded, model, asked=asked, messages=on_gpu)
    log.debug("the decode step is not compiled: %s", why)
    if asked:
        raise ModelError(_REFUSAL.format(why))
    return None


class CompiledStep:
    """Runs steps of a few tokens in place of the model, once all of it was compiled.

    A step that fails leaves the cache as it was, and is the last: the model itself goes on. After one of a
    message those of fewer tokens go on as well.
    """

    def __init__(self, loaded: LoadedModel, model: Any, *, asked: bool, messages: bool = False) -> None:
        """If it was not `asked` for, it is only used where it is faster than the model itself; of `messages`
        it may take tokens too, and always only where it is."""
        self._loaded = loaded
        self._model = model
        self._asked = asked
        self._parts: Iterator[None] | None = self._compile()
        self._messages = messages
        self._most_rows = FEW if loaded.speculates or messages else 1
        self._run: Callable[..., tuple[Any, Any]] | None = None
        self._longest = 0
        """Tokens in the cache up to which it is used."""

    def compile_more(self) -> bool:
        """Compile the next part, which takes some seconds. False: there is none left.

        Raises: ModelError where it was asked for and fails.
        """
        if self._parts is None:
            return False
        try:
            with self._loaded.inference():
                next(self._parts)
            return True
        except StopIteration:
            self._parts = None
        except Exception as e:
            log.debug("the decode step cannot be compiled", exc_info=True)
            self.drop()
            if self._asked:
                lines = [line for line in str(e).splitlines() if line.strip()]
                raise ModelError(_REFUSAL.format(lines[0].strip() if lines else type(e).__name__)) from e
        return False

    def _compile(self) -> Iterator[None]:
        """Compile all parts, check what they compute, and measure. Raises whatever torch raises."""
        import torch

        use_cache_folder()
        step = Step(self._model)
        loaded = self._loaded
        cache = loaded.new_cache()
        loaded.forward_eager(self._probe(_PROMPT), cache)
        kinds = {(type(layer.mlp), step.of(layer)): number for number, layer in enumerate(step.layers)}
        for name in ("run_layer", "open_layer"):
            setattr(step, name, torch.compile(getattr(step, name), fullgraph=True, options=_OPTIONS))
        for rows in (1, 2)[: self._most_rows]:
            yield from self._compile_kinds(step, kinds, rows, cache)
        on_gpu = loaded.input_device.type == "cuda"
        self._run = Recorder(step.pieces) if on_gpu else lambda *given: run(step.pieces(*given))
        self._check(cache, _STEPS + _MORE_STEPS * (self._most_rows > 1))
        yield
        self._longest = sys.maxsize if self._asked else self._faster_up_to(cache)
        if not self._longest:
            self.drop()
        elif self._messages:
            yield
            try:
                yield from self._compile_kinds(step, kinds, MESSAGES[0], cache)
                self._check(cache, _MESSAGE)
                yield
                self._most_rows = self._faster_with(cache)
            except Exception:  # not every GPU can group experts; steps go on
                log.debug("the prefill of messages cannot be compiled", exc_info=True)

    def _compile_kinds(self, step: Step, kinds: dict[Any, int], rows: int, cache: Any) -> Iterator[None]:
        """Compile a layer of each kind, of which the numbers are given, for so many rows and for others."""
        begin = cache.get_seq_length()
        for number in kinds.values():
            _compile(step, number, self._probe(rows), begin, whole(cache, begin + rows)[number])
            yield

    def takes(self, ids: Any, cache: Any) -> bool:
        """Whether it can run `ids` [1, n] after what `cache` holds."""
        rows = ids.shape[1]
        longest = self._longest if rows <= FEW else min(self._longest, 4 * _BEHIND)
        return (
            0 < rows <= self._most_rows and is_whole(cache) and 0 < cache.get_seq_length() + rows <= longest
        )

    def forward(self, ids: Any, cache: Any, rows: int = 1) -> tuple[Any, Any] | None:
        """As LoadedModel.forward. None where it failed, as it will then not be tried again."""
        try:
            return self._forward(ids, cache, rows)
        except Exception:
            log.debug("the compiled decode step failed", exc_info=True)
            if ids.shape[1] > FEW:  # a GPU may lack the memory for them
                self._most_rows = FEW
                return None
            if self._asked:
                log.warning("The compiled decode step failed; answers come without it from now on.")
            self.drop()
            return None

    def drop(self) -> None:
        """Use it no more."""
        self._run, self._parts, self._longest = None, None, 0

    def _forward(self, ids: Any, cache: Any, rows: int) -> tuple[Any, Any]:
        import torch

        assert self._run is not None
        count, begin = ids.shape[1], cache.get_seq_length()
        if count > FEW:  # what is behind them nobody looks at, and what comes next is written over it
            ids = torch.nn.functional.pad(ids, (0, -count % MESSAGE_STEP))
        buffers = whole(cache, begin + ids.shape[1])
        logits, states = self._run(ids, ids.new_full((1,), begin), buffers)
        use(cache, begin + count)
        return logits[count - rows : count], states[:, :count]

    def _check(self, cache: Any, counts: tuple[int, ...]) -> None:
        """Raises ValueError if its logits are not the model's own, over steps of so many rows."""
        loaded = self._loaded
        parts = [self._probe(count, number) for number, count in enumerate(counts)]
        ours = [self._forward(ids, cache, ids.shape[1])[0].float() for ids in parts]
        cache.crop(-sum(counts))
        with self._usual(max(counts)):
            theirs = [loaded.forward_eager(ids, cache, ids.shape[1])[0].float() for ids in parts]
        errors = [float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True)]
        same = all(bool((a.argmax(-1) == b.argmax(-1)).all()) for a, b in zip(ours, theirs, strict=True))
        log.debug("compiled logits are off by %s; the same tokens: %s", errors, same)
        exact = loaded.dtype == "float32"
        near = statistics.median(errors) <= (_NEAR_EXACT if exact else _NEAR)  # False for NaN
        if not near or (exact and not same):
            raise ValueError("it does not give the same numbers when it is")

    def _faster_up_to(self, like: Any) -> int:
        """Tokens in the cache up to which a compiled step takes less time; 0: it never does."""
        longest = 0
        for length in LENGTHS:
            cache = self._filled(like, length)
            if cache is None or not self._is_faster(cache, 1):
                break
            longest = 4 * length
        return longest

    def _faster_with(self, like: Any) -> int:
        """Tokens of a message up to which a compiled prefill takes less time; at least what a step has."""
        most = FEW
        cache = self._filled(like, _BEHIND)
        for rows in MESSAGES:
            if cache is None or not self._is_faster(cache, rows):
                break
            most = rows
        return most

    def _filled(self, like: Any, length: int) -> Any | None:
        """A cache of so many tokens, otherwise like the given one; None if there is no memory for it."""
        whole_layers = whole(like, 1)
        each = sum(t.nbytes // t.shape[2] for buffers in whole_layers for t in buffers)
        if length * each > self._loaded.spare_memory():
            return None
        cache = self._loaded.new_cache()
        for number, buffers in enumerate(whole_layers):
            cache.update(*(t.new_zeros(*t.shape[:2], length, t.shape[3]) for t in buffers), number)
        return cache

    def _is_faster(self, cache: Any, rows: int) -> bool:
        """Than the model itself, with so many tokens after what `cache` holds."""
        loaded = self._loaded
        ours = self._seconds(self._forward, cache, rows)
        with self._usual(rows):
            theirs = self._seconds(loaded.forward_eager, cache, rows)
        log.debug(
            "%d after %d tokens take %.2g s; before, %.2g s", rows, cache.get_seq_length(), ours, theirs
        )
        return ours < theirs

    def _usual(self, rows: int) -> contextlib.AbstractContextManager[None]:
        """In which the model itself would run so many."""
        return self._loaded.decoding() if rows <= FEW else contextlib.nullcontext()

    def _seconds(self, forward: Callable[..., tuple[Any, Any]], cache: Any, rows: int) -> float:
        """How long so many tokens take after what `cache` holds."""
        ids = self._probe(rows)
        times = []
        for _ in range(_UNTIMED + _TIMED):
            began = time.perf_counter()
            logits, _ = forward(ids, cache, 1)
            int(logits.argmax())  # waits for a GPU
            times.append(time.perf_counter() - began)
            cache.crop(-rows)
        return statistics.median(times[_UNTIMED:])

    def _probe(self, count: int, number: int = 0) -> Any:
        """Some tokens: which does not matter."""
        vocabulary = self._model.config.vocab_size
        return self._loaded.ids([(7 + 31 * n + 101 * number) % vocabulary for n in range(count)])


def why_not(model: Any, *, offloaded: bool, attn: str | None) -> str | None:
    """What keeps `model` from being compiled, if anything does."""
    devices = {t.device for name, t in model.named_parameters() if ".experts." not in name}
    kind = getattr(model.config, "model_type", "")
    if kind not in KINDS or not type(model).__module__.startswith("transformers."):
        return f"only {', '.join(KINDS)} of transformers can be, and this is {kind or 'another'}"
    if offloaded or len(devices) > 1 or any(hasattr(module, "_hf_hook") for module in model.modules()):
        return "its weights are not all on one device"
    if getattr(model.config, "quantization_config", None) is not None:
        return "its weights are quantised"
    if attn is not None:
        return f"it has attention of its own, and --attn {attn} asks for another"
    (device,) = devices
    if device.type not in ("cpu", "cuda"):
        return f"it is on {device.type}"
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        return f"there is no C++ compiler ({compiler}) here"
    return None


def use_cache_folder() -> None:
    """Let torch keep what it compiles in a folder that is the person's alone, if none is set."""
    if not os.environ.get(_CACHE_VARIABLE):
        import platformdirs

        folder = Path(platformdirs.user_cache_dir("glmchat", appauthor=False)) / "compiled"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)  # it holds code that is run
        os.environ[_CACHE_VARIABLE] = str(folder)


def _compile(step: Step, number: int, ids: Any, position: int, buffers: tuple[Any, Any]) -> None:
    """Compile a layer for as many rows as `ids` has (1, as many as a step, or more), with any room.

    Its keys and values are written from `position` on.
    """
    import torch

    mark = torch._dynamo.mark_dynamic
    x, cos, sin, mask, positions = step.begin(ids, ids.new_full((1,), position), buffers[0].shape[2])
    keys, values = map(in_parts, buffers)
    for tensor, dimension in ((keys, 2), (values, 2), (mask, 1)):
        mark(tensor, dimension)
    if ids.shape[1] > 1:
        for tensor, dimension in ((x, 1), (cos, 1), (sin, 1), (mask, 0), (positions, 0)):
            mark(tensor, dimension)
    layer = step.layers[number]
    step.of(layer)(layer, x, cos, sin, mask, positions, keys, values)
