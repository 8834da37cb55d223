"""CUDA graphs: the kernels of a decode step, recorded once and sent to the GPU as one."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, NamedTuple

from .step import Out, Pieces, run


class Recorder:
    """Runs a step on a GPU: the first time as it is, then from recordings of its pieces (CUDA graphs).

    A recording works on the very buffers that it was made with. It is made anew, within a tenth of a second,
    when those of another conversation come, or larger ones.
    """

    def __init__(self, pieces: Callable[..., Pieces]) -> None:
        self._pieces = pieces
        self._pool: Any = None
        """Where all recordings keep their intermediate tensors: they take turns."""
        self._recordings: dict[int, tuple[Any, _Recording]] = {}
        """By the number of rows: the places of the buffers, and what was recorded with them."""

    def __call__(self, ids: Any, position: Any, buffers: list[tuple[Any, Any]]) -> Out:
        """As Step.pieces, run to their end."""
        rows = ids.shape[1]
        places = [(t.data_ptr(), t.shape[2]) for pair in buffers for t in pair]
        if rows not in self._recordings or self._recordings[rows][0] != places:
            # Loads what is loaded at first use; so it is no recording.
            out = run(self._pieces(ids, position, buffers))
            self._recordings[rows] = places, self._record(ids.clone(), position.clone(), buffers)
            return out
        logits, states = self._recordings[rows][1].replay(ids, position)
        return logits.clone(), states.clone()  # the next replay writes into them

    def _record(self, ids: Any, position: Any, buffers: list[tuple[Any, Any]]) -> _Recording:
        import torch

        self._pool = self._pool or torch.cuda.graph_pool_handle()
        gc.collect()  # what a tensor that nobody has any more would give back is given back before
        torch.cuda.empty_cache()
        pieces = self._pieces(ids, position, buffers)
        between: list[tuple[Any, Callable[..., Any], Any, Any]] = []
        made = None
        stream: Any = torch.cuda.Stream(ids.device)  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(ids.device)
        with torch.cuda.device(ids.device), torch.cuda.stream(stream):
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
