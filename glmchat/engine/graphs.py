"""CUDA graphs: the kernels of a decode step, recorded once and sent to the GPU as one."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .step import Out, Pieces, run


class Recorder:
    """Runs a step on a GPU: the first time as it is, then from recordings of its pieces (CUDA graphs).

    A recording works on the very buffers that it was made with. It is made anew when those of another
    conversation come, or larger ones; at their second step, as the rest of a prompt may be their only one.
    """

    def __init__(self, pieces: Callable[..., Pieces]) -> None:
        self._pieces = pieces
        self._pool: Any = None
        """Where all recordings keep their intermediate tensors: they take turns."""
        self._places: dict[int, list[tuple[int, int]]] = {}
        """Of the buffers that the last step of so many rows had, and their room."""
        self._recordings: dict[int, _Recording] = {}
        """With those, by the number of rows."""

    def __call__(self, ids: Any, position: Any, buffers: list[tuple[Any, Any]]) -> Out:
        """As Step.pieces, run to their end."""
        rows = ids.shape[1]
        places = [(t.data_ptr(), t.shape[2]) for pair in buffers for t in pair]
        if self._places.get(rows) != places:
            self._places[rows] = places
            self._recordings.pop(rows, None)
            # Loads what is loaded at first use, too, which cannot be recorded.
            return run(self._pieces(ids, position, buffers))
        if rows not in self._recordings:
            self._recordings[rows] = self._record(ids.clone(), position.clone(), buffers)
        logits, states = self._recordings[rows].replay(ids, position)
        return logits.clone(), states.clone()  # the next replay writes into them

    def _record(self, ids: Any, position: Any, buffers: list[tuple[Any, Any]]) -> _Recording:
        import torch

        self._pool = self._pool or torch.cuda.graph_pool_handle()
        torch.cuda.empty_cache()
        pieces = self._pieces(ids, position, buffers)
        between: list[tuple[Any, Callable[..., Any], Any, Any]] = []
        made = None
        stream: Any = torch.cuda.Stream(ids.device)  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(ids.device)
        with _nothing_collected(), torch.cuda.device(ids.device), torch.cuda.stream(stream):
            while True:
                graph = torch.cuda.CUDAGraph()
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    compute, given = pieces.send(made)
                except StopIteration as end:
                    return _Recording(ids, position, between, graph, end.value)
                finally:
                    graph.capture_end()
                made = torch.empty_like(given[0])
                between.append((graph, compute, given, made))


@contextlib.contextmanager
def _nothing_collected() -> Iterator[None]:
    """A GPU may not be given back a tensor that nobody has any more while it records. To collect all of them
    before takes half a second, of which an answer's first words would be late."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Recording(NamedTuple):
    """Graphs, and the tensors that they read and write."""

    ids: Any
    position: Any
    between: list[tuple[Any, Callable[..., Any], Any, Any]]
    """Graphs with what is to be computed after each, of what, and where the next one finds it."""
    last: Any
    out: Out

    def replay(self, ids: Any, position: Any) -> Out:
        self.ids.copy_(ids)
        self.position.copy_(position)
        for graph, compute, given, made in self.between:
            graph.replay()
            made.copy_(compute(*given))
        self.last.replay()
        return self.out
