"""Tensor parallelism: several processes, the ranks, each with its share of every layer on its own device.

Rank 0 holds the engine. The others do nothing but mirror it: before each forward rank 0 tells them over a
socket pair what it is about to run, and then all run it, meeting in the collectives that transformers puts
into the layers. A forward names how long its KV cache must be before, so that cutting one back needs no
message of its own; only a copy of one does.

Where one rank fails, the rest are of no use. gloo then raises, as the peer's socket closes, but NCCL waits
for ever. So a thread of rank 0 watches the others, and what it calls must do without the thread that
computes: the process of WorkerEngine tells what happened and ends, and the next message starts another.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ..errors import GlmChatError, ModelError
from .environ import environ
from .faults import explain, one_line
from .memory import LoadOptions
from .process import Child, connect

if TYPE_CHECKING:
    from ..glm.checkpoints import Checkpoint
    from .loaded import LoadedModel

log = logging.getLogger(__name__)

OnBroken = Callable[[ModelError], None]

BLAME_S = 0.5
"""A rank that fails waits so long before it says so: if only as another is gone, it is ended meanwhile."""
NOTICE_S = 4 * BLAME_S
"""And so long rank 0 waits to hear why, before it takes the fault for its own."""
_SKEW = timedelta(hours=2)  # by which one rank may read its share of a large model later than another
_SPLIT = (
    ("self_attn.", ("num_attention_heads",), "attention heads"),
    ("self_attn.k_proj", ("num_key_value_heads",), "key and value heads"),
    ("mlp.gate_proj", ("intermediate_size",), "feed-forward channels"),
    ("experts.gate_up_proj", ("moe_intermediate_size", "intermediate_size"), "channels in each expert"),
)
"""What a rule of a plan splits: a part of its name, where config.json says the number, how that is called."""


@dataclass(frozen=True, slots=True)
class Seat:
    """One rank's place among `count`. They find each other by the file `store`, which no other user can read.

    `backend` is nccl, where rank N takes GPU N, or gloo, on the CPU.
    """

    rank: int
    count: int
    backend: str
    store: str

    @property
    def environ(self) -> dict[str, str]:
        """What torch and transformers are told by the environment. All traffic stays in this machine."""
        names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
        told = {name: os.environ.get(name, "lo") for name in names}
        told |= {"RANK": str(self.rank), "LOCAL_RANK": str(self.rank), "WORLD_SIZE": str(self.count)}
        return told

    @contextlib.contextmanager
    def taken(self) -> Iterator[dict[str, Any]]:
        """Within it a share of a model can be loaded, by `from_pretrained` with these arguments."""
        import torch
        import torch.distributed as dist
        from transformers.distributed import DistributedConfig

        on_gpu = self.backend == "nccl"
        if on_gpu:
            torch.cuda.set_device(self.rank)
        else:  # they share the cores
            torch.set_num_threads(max(1, torch.get_num_threads() // self.count))
        with environ(self.environ):
            dist.init_process_group(
                self.backend,
                store=dist.FileStore(self.store, self.count),  # type: ignore[attr-defined]
                rank=self.rank,
                world_size=self.count,
                timeout=_SKEW,
                device_id=torch.device("cuda", self.rank) if on_gpu else None,
            )
            yield {"distributed_config": DistributedConfig(tp_plan="auto", tp_size=self.count)}

    def leave(self) -> None:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()

    def clear(self) -> None:
        """Remove the folder of `store`, which is there for nothing else. Whoever ends last does it."""
        shutil.rmtree(Path(self.store).parent, ignore_errors=True)


class Ranks:
    """The other ranks, as rank 0 sees them; it has `seat` itself.

    When one fails, all are ended, `fault` says why, and `on_broken` is called, by any thread.
    """

    def __init__(self, checkpoint: Checkpoint, options: LoadOptions, on_broken: OnBroken) -> None:
        """Start them. Raises ModelError: this machine has not so many devices."""
        count, backend = _choose(options)
        self.seat = Seat(0, count, backend, str(Path(tempfile.mkdtemp(prefix="glmchat-")) / "ranks"))
        self.fault: ModelError | None = None
        self.shares: dict[int, int] = {}
        """How many bytes of weights each of the others holds, by its number; 0 while it has not loaded."""
        self._name = checkpoint.name
        self._on_broken = on_broken
        self._changed = threading.Condition()
        self._closing = False
        self._numbers: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # of caches that are in use here
        self._newest = 0
        self._children: list[Child] = []
        small = replace(checkpoint, shards=())
        try:
            for rank in range(1, count):
                seat = replace(self.seat, rank=rank)
                hidden = {"CUDA_VISIBLE_DEVICES": ""} if backend == "gloo" else {}
                self._children.append(Child(__name__, seat.environ | hidden))
                self._tell([self._children[-1]], seat, small, options)
        except OSError:  # there is no process for this one
            self._kill()
            for child in self._children:
                child.end()
                child.close()
            self.seat.clear()
            raise
        self._watcher = threading.Thread(target=self._watch, name="glmchat-ranks", daemon=True)
        self._watcher.start()

    @contextlib.contextmanager
    def loading(self, config: Any) -> Iterator[dict[str, Any]]:
        """Inside rank 0 loads its own share of a model with this config of transformers, by these arguments.

        Raises ModelError: the model cannot be split among so many, or a rank failed.
        """
        _check_even(self._name, config, self.seat.count)
        with self._blamed():
            self._wait(lambda: len(self.shares) == len(self._children))
            with self.seat.taken() as arguments:
                yield arguments
            self._wait(self._loaded)

    @contextlib.contextmanager
    def forward(self, ids: Any, cache: Any, rows: int) -> Iterator[None]:
        """What runs inside, LoadedModel.forward with these arguments, runs on all of them.

        Raises ModelError: a rank failed, this one maybe, and nothing more will come of any.
        """
        try:
            with self._blamed():
                number = self._number(cache)
                past, alive = cache.get_seq_length(), frozenset(self._numbers.values())
                self._tell(self._children, "forward", number, past, ids[0].tolist(), rows, alive)
                yield
        except Exception as e:
            if self.fault is not None:
                raise
            fault = ModelError(explain(self._name, e, "answering"))
            self._break(fault)  # the others wait where it came
            raise fault from e

    def copy(self, source: Any, target: Any, length: int) -> None:
        """The empty cache `target` got the first tokens of the cache `source`."""
        self._tell(self._children, "copy", self._number(source), self._number(target), length)

    def use_experts(self, kernel: str) -> None:
        """See LoadedModel.use_experts."""
        self._tell(self._children, "use_experts", kernel)

    def close(self) -> None:
        """End the others. Idempotent."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
        at_work = self.fault is None and self._loaded()
        self._tell(self._children, None)
        if not at_work:
            self._kill()
        if at_work or self.seat.backend == "gloo":  # NCCL might wait for who is gone
            self.seat.leave()
        for child in self._children:
            child.end()
        self._watcher.join()
        for child in self._children:
            child.close()
        self.seat.clear()

    @contextlib.contextmanager
    def _blamed(self) -> Iterator[None]:
        """What fails inside only because another rank is gone raises what became of that one."""
        if self.fault is not None:
            raise self.fault
        try:
            yield
        except GlmChatError:
            raise
        except Exception as e:
            with self._changed:
                self._changed.wait_for(lambda: self.fault, NOTICE_S)
            if self.fault is None:
                raise
            raise self.fault from e

    def _wait(self, done: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.fault or done())
        if self.fault is not None:
            raise self.fault

    def _loaded(self) -> bool:
        return len(self.shares) == len(self._children) and all(self.shares.values())

    def _number(self, cache: Any) -> int:
        if cache not in self._numbers:
            self._newest += 1
            self._numbers[cache] = self._newest
        return self._numbers[cache]

    def _tell(self, children: list[Child], *message: Any) -> None:
        for child in children:
            with contextlib.suppress(OSError):  # it is gone: the watcher finds out
                child.connection.send(message)

    def _watch(self) -> None:
        """The thread that hears how far the others are, and that one is gone."""
        waiting = {child.connection: (rank, child) for rank, child in enumerate(self._children, 1)}
        while waiting:
            for connection in wait(list(waiting)):
                rank, child = waiting[connection]  # type: ignore[index]
                try:
                    said = child.connection.recv()
                except (EOFError, OSError):
                    del waiting[child.connection]
                    if not self._closing:
                        self._break(self._epitaph(rank, child))
                    continue
                if isinstance(said, Exception):
                    self._break(ModelError(f"Rank {rank} of {self.seat.count}: {said}"))
                    continue
                with self._changed:
                    self.shares[rank] = said
                    self._changed.notify_all()

    def _epitaph(self, rank: int, child: Child) -> ModelError:
        text = f"Rank {rank} of {self.seat.count} of {self._name} {child.ended()}"
        if self._loaded():
            return ModelError(f"{text}; ask again, which starts all of them anew.")
        return ModelError(f"{text}, while it loaded; try it again.")

    def _break(self, fault: ModelError) -> None:
        with self._changed:
            if self._closing or self.fault is not None:
                return
            self.fault = fault
            self._changed.notify_all()
        self._kill()
        self.seat.clear()
        self._on_broken(fault)

    def _kill(self) -> None:
        for child in self._children:
            child.kill()


def serve(fd: int) -> None:
    """What the process of another rank does, until rank 0 closes or is gone."""
    connection = connect(fd)
    seat, checkpoint, options = connection.recv()
    threading.Thread(target=_end_with_parent, args=(fd, seat), daemon=True).start()
    try:
        with one_line(checkpoint.name, "running on it"):
            from .loading import load_share

            mirror = _Mirror(load_share(checkpoint, options, seat, lambda: connection.send(0)))
            connection.send(mirror.loaded.own_bytes)
            with mirror.loaded.inference():
                while (message := connection.recv())[0] is not None:
                    method, *arguments = message
                    getattr(mirror, method)(*arguments)
            seat.leave()
    except GlmChatError as e:
        log.debug("rank %d failed", seat.rank, exc_info=True)
        time.sleep(BLAME_S)
        with contextlib.suppress(OSError):
            connection.send(ModelError(str(e)))
    os._exit(0)  # torch has nothing to say any more, and takes its time


def _end_with_parent(fd: int, seat: Seat) -> None:
    """A thread, as the one that computes may wait in a collective for a rank 0 that is gone."""
    poll = select.poll()
    poll.register(fd, 0)  # tells of nothing but the end
    poll.poll()
    seat.clear()
    os._exit(1)


class _Mirror:
    """Does with this rank's share what rank 0 says; see Ranks for the messages."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self._caches: dict[int, Any] = {}

    def forward(self, number: int, past: int, ids: list[int], rows: int, alive: frozenset[int]) -> None:
        for dead in self._caches.keys() - alive:
            del self._caches[dead]
        cache = self._cache(number)
        if surplus := cache.get_seq_length() - past:
            cache.crop(-surplus)
        self.loaded.forward(self.loaded.ids(ids), cache, rows)

    def copy(self, source: int, target: int, length: int) -> None:
        self.loaded.copy(self._cache(source), self._cache(target), length)

    def use_experts(self, kernel: str) -> None:
        self.loaded.use_experts(kernel)

    def _cache(self, number: int) -> Any:
        if number not in self._caches:
            self._caches[number] = self.loaded.new_cache()
        return self._caches[number]


def hide_gpus() -> None:
    """transformers puts a share on the GPU wherever it sees one. Before torch first looks for them."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _choose(options: LoadOptions) -> tuple[int, str]:
    """How many ranks, and the backend by which they talk."""
    import torch
    import torch.distributed as dist

    asked = options.ranks
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = "cpu" if kind is None else kind.type
    backend = {"cpu": "gloo", "cuda": "nccl"}.get(device, "")
    if not backend or not dist.is_available() or not getattr(dist, f"is_{backend}_available")():
        raise ModelError(f"--parallel: this torch has no means to let ranks on {device} talk; leave it out.")
    if dist.is_initialized():
        raise ModelError("--parallel: this process already runs a model in that way; close that one first.")
    if device == "cuda":
        have = torch.cuda.device_count()
        count = asked or have
        if not 2 <= count <= have:
            raise ModelError(
                f"--parallel {options.parallel} needs {max(2, count)} GPUs, and this machine has {have}; "
                "leave it out, or add --device-map cpu for ranks on the CPU."
            )
    else:
        count = asked or 2
    return count, backend


def _check_even(name: str, config: Any, count: int) -> None:
    """Raises ModelError for a model whose plan cannot be carried out by so many."""
    text = config.get_text_config()
    rules = {**(config.base_model_tp_plan or {}), **(text.base_model_tp_plan or {})}
    plan = [rule for rule, style in rules.items() if "colwise" in style]
    if not plan:
        raise ModelError(
            f"--parallel: transformers has no plan to split a {config.model_type} model like {name}; "
            "leave it out, and --device-map auto spreads its layers over the GPUs."
        )
    sizes: dict[str, int] = {}
    for part, fields, what in _SPLIT:
        if any(part in rule for rule in plan):
            found = (getattr(text, field, None) for field in fields)
            sizes[what] = next((size for size in found if isinstance(size, int)), count)
    for what, size in sizes.items():
        if size % count:
            common = math.gcd(*sizes.values())
            fit = [f"tensor:{n}" for n in range(2, common + 1) if common % n == 0]
            use = f"use {' or '.join(fit[:6])}" if fit else "leave --parallel out"
            raise ModelError(f"{name} has {size:,} {what}, which {count} ranks cannot share evenly; {use}.")
