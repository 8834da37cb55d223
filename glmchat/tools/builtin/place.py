"""Where a built-in tool may go: inside its root folders, however a path is spelled or links are swapped.

A path is resolved first and compared then. What is opened afterwards is reached from the root step by step,
and no step may be a link: the resolved path had none, so a link there was put in between.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from glmchat.tools.argv import Refused

from .text import clean, shown

_LONGEST_PATH = 4096
"""Bytes that Linux takes; to resolve longer ones takes long and leads nowhere."""

# O_PATH does with folders that may be passed but not listed.
_STEP = os.O_DIRECTORY | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Place(NamedTuple):
    """A resolved path: the root that it is in, and the steps from there."""

    root: str
    steps: tuple[str, ...]

    @property
    def name(self) -> str:
        """The last step, as seen from the folder before it."""
        return self.steps[-1] if self.steps else "."

    def told(self, roots: Sequence[Path]) -> str:
        """As the model would name it: from the first root where it is in that one."""
        steps = "/".join(self.steps)
        near = self.root == _resolved(roots)[0]
        return shown((steps or ".") if near else f"{self.root}/{steps}", _LONGEST_PATH)


def confined(path: str, roots: Sequence[Path]) -> Path:
    """The resolved path, inside one of `roots`, or Refused. Relative ones start at the first root."""
    place = placed(path, roots)
    return Path(place.root, *place.steps)


def placed(path: str, roots: Sequence[Path]) -> Place:
    """What `confined` gives, in two parts."""
    if len(os.fsencode(clean("path", path))) > _LONGEST_PATH:
        raise Refused(
            f"path is {len(path):,} characters long; the longest that works is {_LONGEST_PATH:,} bytes"
        )
    bases = _resolved(roots)
    real = os.path.realpath(os.path.join(bases[0], path))
    if os.path.realpath(real) != real:  # beyond a circle of links, the rest was taken as it stood
        raise Refused(f"{shown(path)} leads through links that go in a circle; name another path")
    for base in bases:
        if real == base or real.startswith(base.rstrip("/") + "/"):
            return Place(base, Path(real).relative_to(base).parts)
    inside = " and ".join(shown(base) for base in bases)
    raise Refused(f"{shown(path)} is outside of {inside}; only what is inside may be used")


def _resolved(roots: Sequence[Path]) -> list[str]:
    return [os.path.realpath(root) for root in roots or (Path.cwd(),)]


@contextmanager
def faults_told(path: str) -> Iterator[None]:
    """What the system says against a path, as Refused."""
    try:
        yield
    except FileNotFoundError:
        raise Refused(f"{shown(path)}: no such file or folder; list_dir shows what is there") from None
    except IsADirectoryError:
        raise Refused(f"{shown(path)} is a folder; name a file, or use list_dir") from None
    except NotADirectoryError:
        raise Refused(
            f"{shown(path)} is no folder, or goes through a file; use read_file for files"
        ) from None
    except OSError as e:
        raise Refused(f"{shown(path)}: {e.strerror or e}") from None


@contextmanager
def folder(root: str, steps: Sequence[str], *, make: bool = False) -> Iterator[int]:
    """A descriptor of the folder, to be used as `dir_fd`. With `make`, missing ones are created."""
    fd = os.open(root, _STEP)
    try:
        for step in steps:
            below = _step(fd, step, make)
            os.close(fd)
            fd = below
        yield fd
    finally:
        os.close(fd)


def _step(fd: int, name: str, make: bool) -> int:
    flags = _STEP | os.O_NOFOLLOW
    try:
        return os.open(name, flags, dir_fd=fd)
    except FileNotFoundError:
        if not make:
            raise
        os.mkdir(name, dir_fd=fd)
        return os.open(name, flags, dir_fd=fd)


def entries(fd: int) -> Iterator[os.DirEntry[str]]:
    """What is in the folder, in no order."""
    listing = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    try:
        with os.scandir(listing) as found:
            yield from found
    finally:
        os.close(listing)


@contextmanager
def regular(fd: int, name: str, path: str) -> Iterator[BinaryIO]:
    """The file `name` of a folder, open to be read. A FIFO or device is refused and never waited for."""
    with open(name, "rb", opener=lambda n, _: os.open(n, _READ, dir_fd=fd)) as file:
        require_regular(os.fstat(file.fileno()).st_mode, path)
        yield file


def require_regular(mode: int, path: str) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError
    if not stat.S_ISREG(mode):
        raise Refused(f"{shown(path)} is no regular file but a FIFO, device, socket or link; name another")
