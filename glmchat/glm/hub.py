"""Downloads checkpoints by their hub name into the Hugging Face cache; each fault is one line."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import GlmChatError, ModelError

log = logging.getLogger(__name__)

BytesDone = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) while files are downloaded."""

_SOON_S, _LATE_S = 3.0, 10.0
"""How long the hub is waited for where the cache holds what is needed, and where it does not."""


def is_hub_name(name: str) -> bool:
    """Whether `name` has the form `org/name`."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) is not None


class Repository:
    """A checkpoint on the hub. Without `token`, HF_TOKEN or the login kept by `hf auth login` is used.

    All that is downloaded of it is of one commit, that which the hub names when it is first asked. A hub that
    does not answer in time is as good as none: what is in the cache is used then.
    """

    def __init__(self, name: str, revision: str | None, token: str | None, *, offline: bool) -> None:
        self._name = name
        self._revision = revision
        self._token = token or None
        self._offline = offline
        self._commit: str | None = None
        self._silent = False

    def download(self, patterns: Iterable[str], on_bytes: BytesDone | None = None, size: int = 0) -> Path:
        """Bring the files that match `patterns`, of `size` bytes if that is known, into the cache and return
        their folder.

        Raises: ModelError when the name is unknown, gated, unreachable, or offline and not cached, and when
        the disk has no room.
        """
        from huggingface_hub import constants, errors

        name, patterns = self._name, list(patterns)
        offline = self._offline or constants.HF_HUB_OFFLINE
        at = f" at revision {self._revision}" if self._revision else ""
        try:
            with _quiet():
                folder = self._snapshot(patterns, offline, on_bytes, size)
        except errors.GatedRepoError:
            raise ModelError(
                f"{name} is gated: accept its terms at https://huggingface.co/{name}, then give --token or "
                "set HF_TOKEN."
            ) from None
        except errors.RevisionNotFoundError:
            raise ModelError(f"{name} has no revision {self._revision}; check --revision.") from None
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
        except GlmChatError:
            raise
        except Exception as e:  # of the system, the hub, or the library that speaks HTTP, whichever it is
            reason = (str(e).strip() or type(e).__name__).splitlines()[0]
            raise ModelError(
                f"The download of {name}{at} failed ({reason}); try again: files that came whole are kept."
            ) from e
        self._commit = folder.name
        return folder

    def _snapshot(self, patterns: list[str], offline: bool, on_bytes: BytesDone | None, size: int) -> Path:
        from huggingface_hub import snapshot_download

        if self._commit is None and not offline:
            self._silent = not self._answers(_SOON_S if self._cached(patterns) else _LATE_S)
        if not offline and not self._silent:
            self._check_disk(size)
        return Path(
            snapshot_download(
                self._name,
                revision=self._commit or self._revision,
                token=self._token,
                local_files_only=offline or self._silent,
                allow_patterns=patterns,
                tqdm_class=_bar_class(on_bytes),
            )
        )

    def _cached(self, patterns: list[str]) -> bool:
        from huggingface_hub import errors, snapshot_download

        try:
            snapshot_download(
                self._name, revision=self._revision, local_files_only=True, allow_patterns=patterns
            )
        except errors.LocalEntryNotFoundError:
            return False
        return True

    def _check_disk(self, size: int) -> None:
        """Whether what is not there yet of so many bytes fits."""
        from huggingface_hub import constants, file_download

        cache = Path(constants.HF_HUB_CACHE)
        blobs = cache / file_download.repo_folder_name(repo_id=self._name, repo_type="model") / "blobs"
        whole = [blob for blob in blobs.glob("*") if blob.suffix != ".incomplete"]  # others begin anew
        missing = size - sum(blob.stat().st_size for blob in whole)
        disk = next(folder for folder in (cache, *cache.parents) if folder.exists())
        if missing > (free := shutil.disk_usage(disk).free):
            raise ModelError(
                f"{self._name} takes {size / 1e9:,.0f} GB of the disk, and {cache} has {free / 1e9:,.0f} GB "
                "left; make room there, or set HF_HOME to a folder on a larger disk."
            )

    def _answers(self, seconds: float) -> bool:
        """Whether the hub does, whatever it says; the library would wait for it without end."""
        from huggingface_hub import HfApi, errors

        try:
            HfApi(token=self._token).model_info(
                self._name, revision=self._revision, timeout=seconds, expand=["sha"]
            )
        except (errors.HfHubHTTPError, errors.HFValidationError):
            return True
        except Exception:  # of the library that speaks HTTP, whichever it is
            log.debug("the hub does not answer", exc_info=True)
            return False
        return True


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
            kwargs["file"] = io.StringIO()  # where it ends with a line of its own
            super().__init__(*args, **kwargs)

        def display(self, *args: Any, **kwargs: Any) -> None:
            if on_bytes is not None and self.unit == "B" and self.n:
                on_bytes(int(self.n), int(self.total or 0))

        def clear(self, *args: Any, **kwargs: Any) -> None:
            pass

    return Bar
