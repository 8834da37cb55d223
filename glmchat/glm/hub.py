"""Downloads checkpoints by their hub name into the Hugging Face cache; each fault is one line."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelError

BytesDone = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) while files are downloaded."""


def is_hub_name(name: str) -> bool:
    """Whether `name` has the form `org/name`."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) is not None


@dataclass(frozen=True, slots=True)
class Hub:
    """How to reach the hub. Without `token`, HF_TOKEN or the login kept by `hf auth login` is used."""

    revision: str | None = None
    token: str | None = None
    offline: bool = False

    def download(self, name: str, patterns: Iterable[str], on_bytes: BytesDone | None = None) -> Path:
        """Bring the files that match `patterns` into the cache and return their folder.

        Raises: ModelError when the name is unknown, gated, unreachable, or offline and not cached.
        """
        import huggingface_hub
        from huggingface_hub import constants, errors

        offline = self.offline or constants.HF_HUB_OFFLINE
        at = f" at revision {self.revision}" if self.revision else ""
        try:
            with _quiet():
                folder = huggingface_hub.snapshot_download(
                    name,
                    revision=self.revision,
                    token=self.token or None,
                    local_files_only=offline,
                    allow_patterns=list(patterns),
                    tqdm_class=_bar_class(on_bytes),
                )
        except errors.GatedRepoError:
            raise ModelError(
                f"{name} is gated: accept its terms at https://huggingface.co/{name}, then give --token or "
                "set HF_TOKEN."
            ) from None
        except errors.RevisionNotFoundError:
            raise ModelError(f"{name} has no revision {self.revision}; check --revision.") from None
        except errors.RepositoryNotFoundError:
            raise ModelError(
                f"{name} was not found on the hub, or it is private; check the spelling, or give --token or "
                "set HF_TOKEN."
            ) from None
        except errors.HFValidationError:
            raise ModelError(f"{name} is not a valid hub name; it looks like zai-org/GLM-4.5-Air.") from None
        except errors.LocalEntryNotFoundError:
            if offline:
                why = "is not wholly in the local cache and --offline forbids a download; run once without it"
            else:
                why = "is not in the local cache and the hub cannot be reached; check the network"
            raise ModelError(f"{name}{at} {why}, or give a folder.") from None
        except (OSError, errors.HfHubHTTPError) as e:
            reason = (str(e).strip() or type(e).__name__).splitlines()[0]
            raise ModelError(
                f"The download of {name}{at} failed ({reason}); try again, what came so far is kept."
            ) from e
        return Path(folder)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's warnings off the terminal unless glmchat itself logs at debug level."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    if not logging.getLogger("glmchat").isEnabledFor(logging.DEBUG):
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _bar_class(on_bytes: BytesDone | None) -> type:
    """A tqdm class that draws nothing and reports bytes to `on_bytes`."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs["disable"] = False  # a disabled bar does not count
            super().__init__(*args, **kwargs)

        def display(self, *args: Any, **kwargs: Any) -> None:
            if on_bytes is not None and self.unit == "B" and self.n:
                on_bytes(int(self.n), int(self.total or 0))

        def clear(self, *args: Any, **kwargs: Any) -> None:
            pass

    return Bar
