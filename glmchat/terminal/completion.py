"""Completes commands at the start of the line, their arguments, and paths after `@`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from .commands import matching


class Commands(Completer):
    """`tools` gives the names of the tools there are."""

    _paths = PathCompleter(expanduser=True)

    def __init__(self, tools: Callable[[], Iterable[str]]) -> None:
        self._tools = tools

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        before = document.text_before_cursor
        if re.fullmatch(r"/\w*", before):
            for command in matching(before):
                yield Completion(command.name, -len(before), display_meta=command.help)
        elif argument := re.fullmatch(r"(/\w+) +(\S*)", before):
            for command in matching(argument[1]):
                if command.takes_path:
                    yield from self._path(argument[2], complete_event)
                for choice in command.choices:
                    if choice.startswith(argument[2]):
                        yield Completion(choice, -len(argument[2]))
        elif begun := re.fullmatch(r"/tools +(?:on|off) +(?:\S+ +)*(\S*)", before):
            for name in self._tools():
                if name.startswith(begun[1]):
                    yield Completion(name, -len(begun[1]))
        if quoted := re.search(r'(?<!\S)@"([^"\n]*)$', before):
            for path in self._path(quoted[1], complete_event):
                yield from _in_quotes(path, path.text, 0)
        elif begun := re.search(r"(?<!\S)@([^\"\s]*)$", before):
            for path in self._path(begun[1], complete_event):
                name = begun[1] + path.text
                if re.search(r"\s", name):
                    yield from _in_quotes(path, f'"{name}', -len(begun[1]))
                else:
                    yield path

    def _path(self, begun: str, event: CompleteEvent) -> Iterable[Completion]:
        return self._paths.get_completions(Document(begun), event)


def _in_quotes(path: Completion, text: str, begin: int) -> Iterable[Completion]:
    """A path that may hold blanks, unless its name cannot stand in quotes; those of a folder stay open."""
    if not re.search(r'["\n]', path.text):
        is_folder = path.display_text.endswith("/")
        yield Completion(text if is_folder else f'{text}"', begin, display=path.display)
