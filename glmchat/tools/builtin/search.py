"""search_files: a literal text, line by line, through a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from glmchat.tools.argv import Refused

from .place import Place, entries, faults_told, folder, placed, regular
from .text import clean, shown

_SKIPPED = {".git", "node_modules", "__pycache__", ".venv"}
_LARGEST = 5_000_000
_LONGEST_LINE = 300
_BEFORE_HIT = 100
_MOST_HITS = 200


def search_files(text: str, path: str = ".", files: str = "*", *, roots: Sequence[Path]) -> Iterator[str]:
    """`path:line: text` as it is found, so that a search that is ended has told something."""
    clean("text", text)
    if "\n" in text or "\r" in text:
        raise Refused("text has a line break, but the search goes line by line; give one line of it")
    pattern = files.removeprefix("**/")
    if "/" in pattern:
        raise Refused(
            f"files is a pattern for names such as *.py, but {shown(files)} has a folder; put it in path"
        )
    place, any_case, hits, searched = placed(path, roots), text == text.lower(), 0, 0
    for found, data in _files(place, pattern, path):
        searched += 1
        for number, line in _hits(data, text, any_case):
            hits += 1
            if hits > _MOST_HITS:
                yield f"[There are more than these {_MOST_HITS} hits. Narrow path, files or text.]\n"
                return
            yield f"{found.told(roots)}:{number}: {line}\n"
    if not hits:
        yield f"[No line holds {shown(text)}; {searched:,} files were searched.]\n"


def _hits(data: bytes, text: str, any_case: bool) -> Iterator[tuple[int, str]]:
    whole = data.decode(errors="replace")
    if text not in (whole.lower() if any_case else whole):
        return
    for number, line in enumerate(whole.split("\n"), 1):
        at = (line.lower() if any_case else line).find(text)
        if at >= 0:
            yield number, _around(line.rstrip("\r"), at)


def _around(line: str, at: int) -> str:
    """As much of a long line as is shown, the hit in it."""
    if len(line) <= _LONGEST_LINE:
        return line
    start = max(0, min(at - _BEFORE_HIT, len(line) - _LONGEST_LINE))
    end = start + _LONGEST_LINE
    return f"{'…' if start else ''}{line[start:end]}{'…' if end < len(line) else ''}"


def _files(start: Place, pattern: str, path: str) -> Iterator[tuple[Place, bytes]]:
    """The text files at and below `start`, a folder's own before those of its folders."""
    root = start.root
    with faults_told(path):  # a fault right here is told, one further down only leaves something out
        try:
            _listed(root, start.steps, pattern)
            only = None
        except NotADirectoryError:
            only = _text_of(root, start.steps, path)
    if only is not None:
        yield start, only
    waiting = [start.steps] if only is None else []
    while waiting:
        steps = waiting.pop()
        with suppress(OSError):
            names, below = _listed(root, steps, pattern)
            waiting += [(*steps, name) for name in reversed(below) if name not in _SKIPPED]
            for name in names:
                with suppress(OSError, Refused):
                    if data := _text_of(root, (*steps, name), name):
                        yield Place(root, (*steps, name)), data


def _text_of(root: str, steps: tuple[str, ...], path: str) -> bytes:
    """What is in the file; nothing of one that is binary or large."""
    with folder(root, steps[:-1]) as fd, regular(fd, steps[-1], path) as file:
        data = file.read(_LARGEST + 1)
    return b"" if len(data) > _LARGEST or b"\0" in data else data


def _listed(root: str, steps: Sequence[str], pattern: str) -> tuple[list[str], list[str]]:
    """The names of files that match, and of folders, sorted; links are neither."""
    names, below = [], []
    with folder(root, steps) as fd:
        for entry in entries(fd):
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.name)
            elif entry.is_file(follow_symlinks=False) and fnmatchcase(entry.name, pattern):
                names.append(entry.name)
    return sorted(names), sorted(below)
