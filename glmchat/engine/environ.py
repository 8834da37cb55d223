"""What libraries are told by the environment, which some read only once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .memory import processor_limit

_WAIT_POLICY, _SPINS = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
_SHORT = "1000"
"""Some tens of microseconds, longer than threads with even shares wait for each other. Beside two programs
that took two cores a token took 15 to 25 ms so, and with libgomp's own 300,000 up to 870. Where nothing else
runs it takes 8, and 3% longer than with those; with 200 a third longer."""


@contextlib.contextmanager
def environ(told: dict[str, str]) -> Iterator[None]:
    """Within it these variables are set."""
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def bring_torch() -> None:
    """Import torch, if nobody has, so that its threads on a CPU soon sleep where they wait for each other.

    One that spins keeps a core on which the one that it waits for, which lost its own to another program,
    could go on. Nor are there more than a container has time for: it would stop all of them together, for the
    rest of each tenth of a second. What the environment says already holds.
    """
    said = _WAIT_POLICY in os.environ or _SPINS in os.environ
    with environ({} if said else {_SPINS: _SHORT}):
        import torch  # libgomp comes with it, and reads that
    most = None if "OMP_NUM_THREADS" in os.environ else processor_limit()
    if most is not None and most < torch.get_num_threads():
        torch.set_num_threads(most)
