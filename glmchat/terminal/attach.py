"""Text files that go along with a message: `@path` in it names one, and its text follows as a named block."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from .wording import size_text

MAX_BYTES = 1_000_000
"""Twice what GLM-4.5's context of 128K tokens holds of English."""

_MENTION = re.compile(r'(?<!\S)@(?:"([^"\n]+)"|(\S+))')
_AFTER_A_PATH = ".,;:!?)]}'\""
_LIKE_A_FILE = re.compile(r"[/~.]|.*\.\w{1,5}\W*$")


@dataclass(frozen=True, slots=True)
class Block:
    """A file's text, and the path by which the person named it."""

    path: str
    text: str

    def __str__(self) -> str:
        """As the model reads it: the name, and the text in a fence that nothing in it can close."""
        longest = max((len(run) for run in re.findall("`{3,}", self.text)), default=2)
        fence = "`" * (longest + 1)
        language = Path(self.path).suffix.removeprefix(".")
        return f"{self.path}:\n{fence}{language}\n{self.text.rstrip(chr(10))}\n{fence}"


def read_block(name: str) -> Block:
    """Read a text file. Raises UsageError for what is missing, too large, or no UTF-8 text."""
    path = Path(os.path.expanduser(name))
    try:
        if not path.exists():
            raise UsageError(f"There is no file {name}.")
        if not path.is_file():
            raise UsageError(f"{name} is no file but a {'folder' if path.is_dir() else 'device'}.")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)  # and no more: it may be growing
            size = max(os.fstat(file.fileno()).st_size, len(data))  # what the system makes up has none
        if size > MAX_BYTES:
            raise UsageError(
                f"{name} is {size_text(size)} large; at most {size_text(MAX_BYTES)} go into a message. "
                "Attach a part of it."
            )
    except OSError as e:
        raise UsageError(f"{name} cannot be read: {e.strerror or e}.") from None
    if b"\0" in data:
        raise UsageError(f"{name} is not text: it holds a NUL byte at offset {data.index(0)}.")
    try:
        return Block(name, data.decode("utf-8-sig"))
    except UnicodeDecodeError as e:
        raise UsageError(f"{name} is not UTF-8 at byte {e.start}; convert it first.") from None


def attach(text: str, typed: str | None = None) -> str:
    """The message with the files that are mentioned in it; in what was `typed` of it, if that is not all.

    What names no file here stays text: `@someone`, `@types/node`. Raises UsageError when a named file cannot
    be attached.
    """
    names = _mentioned(text if typed is None else typed)
    return "\n\n".join([text, *(str(read_block(name)) for name in names)])


def attached(text: str) -> str:
    """A word to the person about the files that go along; "" where there is none."""
    sizes = []
    for name in _mentioned(text):
        with contextlib.suppress(OSError):  # it has gone meanwhile
            sizes.append(f"{name} ({size_text(Path(os.path.expanduser(name)).stat().st_size)})")
    return f"Attached: {', '.join(sizes)}." if sizes else ""


def not_attached(text: str) -> str:
    """A word to the person about mentions of folders and the like, and of files that are missing; or ""."""
    plain = [m[2].rstrip(_AFTER_A_PATH) for m in _MENTION.finditer(text) if m[2] and _named(m) is None]
    names = [f"@{word}" for word in plain if _LIKE_A_FILE.match(word) or _is_there(word)]
    if not names:
        return ""
    return f"{', '.join(names)}: no such file here, so {'it stays' if len(names) == 1 else 'they stay'} text."


def _is_there(name: str) -> bool:
    return os.path.exists(os.path.expanduser(name))


def _mentioned(text: str) -> list[str]:
    return list(dict.fromkeys(filter(None, map(_named, _MENTION.finditer(text)))))


def _named(mention: re.Match[str]) -> str | None:
    quoted, plain = mention.groups()
    if quoted:
        return str(quoted)
    for name in (plain, plain.rstrip(_AFTER_A_PATH)):
        try:
            if name and Path(os.path.expanduser(name)).is_file():
                return str(name)
        except OSError:  # a name too long for a path
            continue
    return None
