"""What the exceptions of torch, transformers and accelerate mean to a person, as one line with what to do."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator

from ..errors import GlmChatError, ModelError

_LONGEST = 160
_NO_MEMORY = ("can't allocate memory", "out of memory", "not enough memory")
_MEANINGS = (
    (
        _NO_MEMORY,
        "{name} does not fit in memory; let more of it go to the CPU or disk with --max-memory and "
        "--offload-dir, or choose a smaller checkpoint.",
    ),
    (
        ("Resource temporarily unavailable", "Cannot allocate memory"),
        "{name} gets no more processes or memory from the system ({text}); end other programs first.",
    ),
    (
        ("No usable temporary directory",),
        "There is no folder for the temporary files of {name}: all are full, or closed to you; free some "
        "room on the disk, or name a folder in TMPDIR.",
    ),
    (
        ("ignore_mismatched_sizes",),
        "{name} holds weights of other sizes than its config.json says; fetch both anew from one place.",
    ),
    (
        ("automatic conversion of the weights",),  # of single experts, as they are stored, to all of a layer
        "{name} lacks some of its experts, or they are of other sizes than its config.json says; fetch the "
        "whole checkpoint anew.",
    ),
    (
        ("trust_remote_code", "custom code"),
        "{name} needs code of its own to run, which transformers does not have; if you trust its author, "
        "add --trust-remote-code.",
    ),
    (
        ("offload_folder", "offload_dir"),
        "Part of {name} goes to disk, because it does not fit elsewhere or the device map says so; name a "
        "folder for it with --offload-dir, or allow more memory with --max-memory.",
    ),
    (
        ("does not recognize this architecture", "Unrecognized configuration class", "Unrecognized model"),
        "{name} is of a kind that this transformers cannot run as a chat model; upgrade it "
        "(pip install -U transformers) or choose another checkpoint.",
    ),
    (
        ("attn_implementation", "FlashAttention", "flash_attn", "Flash Attention"),
        "{name} cannot run with this --attn ({text}); leave it out, or use sdpa or eager.",
    ),
    (
        ("meta device", "device_map", "device map"),
        "{name} cannot be placed as --device-map says ({text}); use auto, or give each layer one device.",
    ),
)


def explain(name: str, error: Exception, doing: str) -> str:
    """One line about `error`, which came while the checkpoint `name` should have been `doing`."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError):
        text = "out of memory"
    elif isinstance(error, KeyError):  # whose text is the bare name
        text = f"{text} is not known"
    if doing == "answering" and any(sign in text for sign in _NO_MEMORY):
        return (
            f"This conversation does not fit in memory beside {name}; shorten it, end other programs, or let "
            "more of the model go to the CPU or disk with --max-memory and --offload-dir."
        )
    for signs, meaning in _MEANINGS:
        if any(sign in text for sign in signs):
            return meaning.format(name=name, text=_short(text))
    return f"{name} failed while {doing}: {_short(text)} (--debug shows more)"


@contextlib.contextmanager
def one_line(name: str, doing: str) -> Iterator[None]:
    """Turn what the libraries raise inside into a ModelError; our own errors pass."""
    try:
        yield
    except GlmChatError:
        raise
    except Exception as e:
        raise ModelError(explain(name, e, doing)) from e


def forget_frames(error: BaseException | None) -> None:
    """Let go of what the frames hold that an error and its causes came through: it may live for long."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
