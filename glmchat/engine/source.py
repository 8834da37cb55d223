"""What a model's own code says, where that decides how it may be run."""

from __future__ import annotations

import functools
import inspect
import sys


@functools.cache
def source_of(module: str) -> str:
    """The text of a Python module that is imported; "" where there is none."""
    try:
        return inspect.getsource(sys.modules[module])
    except (KeyError, OSError, TypeError):
        return ""
