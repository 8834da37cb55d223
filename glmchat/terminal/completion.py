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
        if path := re.search(r'(?<!\S)@"?([^"\s]*)$', before):
            yield from self._path(path[1], complete_event)

    def _path(self, begun: str, event: CompleteEvent) -> Iterable[Completion]:
        return self._paths.get_completions(Document(begun), event)
