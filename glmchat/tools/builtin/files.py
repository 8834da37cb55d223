"""read_file, list_dir and write_file."""

from __future__ import annotations

import codecs
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from glmchat.tools.argv import Refused

from .place import entries, faults_told, folder, placed, regular, require_regular
from .text import encoded, shown

_PIECE = 65536
_NOTE = 200
"""Bytes that are kept free for the last line, which says where the text was cut."""
_COUNTED = 64 * 2**20
"""A file of more bytes is not read to its end just to count its lines."""
_MOST_ENTRIES = 1000


def read_file(
    path: str, first_line: int = 1, lines: int | None = None, *, roots: Sequence[Path], max_output: int
) -> str:
    """The text, or as many whole lines as fit, and then where to read on."""
    place, first = placed(path, roots), int(first_line)
    last = None if lines is None else first + int(lines) - 1
    room = max(max_output - _NOTE, max_output // 2)
    with faults_told(path), folder(place.root, place.steps[:-1]) as fd, regular(fd, place.name, path) as file:
        return _text(file, path, first, last, room)


def _text(file: BinaryIO, path: str, first: int, last: int | None, room: int) -> str:
    kept, whole, number = bytearray(), 0, 1
    ended = cut = False
    while True:
        piece = file.readline(_PIECE)
        ended = not piece
        if ended or (last is not None and number > last):
            break
        if b"\0" in piece:
            raise Refused(f"{shown(path)} holds NUL bytes, so it is binary; only text can be read")
        if number >= first:
            cut = len(kept) + len(piece) > room
            kept += piece[: room - len(kept)]
        if cut:
            break
        if piece.endswith(b"\n"):
            number, whole = number + 1, len(kept)
    if ended and len(kept) > whole:
        number += 1  # a last line without a line break counts
    if ended and not kept:
        if first == 1:
            return "[The file is empty.]"
        raise Refused(f"{shown(path)} has no line {first:,}; it has {_count(file):,}")
    if cut and whole:
        del kept[whole:]
    text = _decoded(kept, path, unfinished=cut and not whole)
    if first == 1:
        text = text.removeprefix("\ufeff")
        if ended:
            return text
    return (
        text + ("" if text.endswith("\n") else "\n") + _note(file, first, number, cut=cut, whole=bool(whole))
    )


def _decoded(data: bytes | bytearray, path: str, *, unfinished: bool) -> str:
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(bytes(data), final=not unfinished)
    except UnicodeDecodeError as e:
        byte = data[e.start]
        raise Refused(f"{shown(path)} is not UTF-8 text: byte {byte:#04x} cannot be read") from None


def _note(file: BinaryIO, first: int, following: int, *, cut: bool, whole: bool) -> str:
    if cut and not whole:
        return f"[Line {following:,} is cut here, since it is longer than what fits.]"
    of = f" of {_count(file):,}" if os.fstat(file.fileno()).st_size <= _COUNTED else ""
    on = f" No more fits; read on with first_line={following}." if cut else ""
    return f"[Lines {first:,} to {following - 1:,}{of}.{on}]"


def _count(file: BinaryIO) -> int:
    """The lines of the whole file."""
    file.seek(0)
    lines, last = 0, b"\n"
    while piece := file.read(_PIECE):
        lines, last = lines + piece.count(b"\n"), piece[-1:]
    return lines + (last != b"\n")


def list_dir(path: str = ".", *, roots: Sequence[Path]) -> str:
    """One entry a line, sorted by name: `name/`, `name  1,234 bytes`, `name -> target`."""
    place = placed(path, roots)
    with faults_told(path), folder(place.root, place.steps) as fd:
        names = sorted(entry.name for entry in entries(fd))
        lines = [_entry(name, fd) for name in names[:_MOST_ENTRIES]]
    if len(names) > _MOST_ENTRIES:
        lines.append(f"[{len(names) - _MOST_ENTRIES:,} more entries are not shown.]")
    return "\n".join(lines) or "[The folder is empty.]"


def _entry(name: str, fd: int) -> str:
    try:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            return f"{shown(name)} -> {shown(os.readlink(name, dir_fd=fd))}"
    except OSError as e:
        return f"{shown(name)}  {e.strerror}"
    if stat.S_ISDIR(status.st_mode):
        return f"{shown(name)}/"
    if stat.S_ISREG(status.st_mode):
        return f"{shown(name)}  {status.st_size:,} bytes"
    return f"{shown(name)}  no regular file"


def write_file(path: str, content: str, *, roots: Sequence[Path]) -> str:
    """Put the file there whole or not at all. Missing folders are made."""
    place, data = placed(path, roots), encoded("content", content)
    if path.endswith("/"):
        raise Refused(f"{shown(path)} names a folder; give the name of a file")
    with faults_told(path), folder(place.root, place.steps[:-1], make=True) as fd:
        name = place.name
        old = _old(name, fd)
        if old is not None:
            require_regular(old, path)
            if not os.access(name, os.W_OK, dir_fd=fd):  # replacing it would need no such permission
                raise Refused(f"{shown(path)} may not be written to; name another path")
        _replace(name, data, None if old is None else stat.S_IMODE(old) & 0o777, fd)
    replaced = "It is new." if old is None else "It replaced the file that was there."
    return f"Wrote {len(data):,} bytes to {place.told(roots)}. {replaced}"


def _replace(name: str, data: bytes, mode: int | None, fd: int) -> None:
    beside = f".glmchat-{os.urandom(8).hex()}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(beside, "wb", opener=lambda n, _: os.open(n, flags, 0o666, dir_fd=fd)) as file:
            file.write(data)
            if mode is not None:
                os.fchmod(file.fileno(), mode)
        os.replace(beside, name, src_dir_fd=fd, dst_dir_fd=fd)
    except BaseException:  # also when it is told to end
        with suppress(OSError):
            os.unlink(beside, dir_fd=fd)
        raise


def _old(name: str, fd: int) -> int | None:
    """The mode of what is there."""
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None
