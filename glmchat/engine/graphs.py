"""CUDA graphs: the kernels of a decode step, recorded once and sent to the GPU as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Recorder:
    """Runs a step on a GPU: the first time as it is, then from a recording of it (a CUDA graph).

    A recording works on the very buffers that it was made with. It is made anew, within a tenth of a second,
    when those of another conversation come, or larger ones.
    """

    def __init__(self, run: Callable[..., tuple[Any, Any]]) -> None:
        self._run = run
        self._pool: Any = None
        """Where all recordings keep their intermediate tensors: they take turns."""
        self._recordings: dict[int, tuple[Any, ...]] = {}
        """By the number of rows: places of the buffers, graph, tensors that go in, and that come out."""

    def __call__(self, ids: Any, position: Any, buffers: list[tuple[Any, Any]]) -> tuple[Any, Any]:
        """As Step.run."""
        rows = ids.shape[1]
        places = [(t.data_ptr(), t.shape[2]) for pair in buffers for t in pair]
        if rows not in self._recordings or self._recordings[rows][0] != places:
            out = self._run(ids, position, buffers)  # loads what is loaded at first use; so is no recording
            self._recordings[rows] = places, *self._record(ids.clone(), position.clone(), buffers)
            return out
        _, graph, (fixed_ids, fixed_position), (logits, states) = self._recordings[rows]
        fixed_ids.copy_(ids)
        fixed_position.copy_(position)
        graph.replay()
        return logits.clone(), states.clone()  # the next replay writes into them

    def _record(self, ids: Any, position: Any, buffers: list[tuple[Any, Any]]) -> tuple[Any, Any, Any]:
        import torch

        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(ids.device),
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            out = self._run(ids, position, buffers)
        return graph, (ids, position), out
