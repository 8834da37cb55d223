"""The libraries' own warnings, which would be written over what a person sees."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator

_ALONE = threading.RLock()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' own warnings off the terminal unless glmchat itself logs at debug level.

    One thread at a time: that, and the imports that go on inside, is the whole process's.
    """
    with _ALONE, contextlib.ExitStack() as undo:
        if not logging.getLogger("glmchat").isEnabledFor(logging.DEBUG):
            # Not by the loggers' levels: transformers sets its own when it is first imported, in here.
            undo.callback(logging.disable, logging.root.manager.disable)
            logging.disable(logging.CRITICAL)
            undo.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        yield
