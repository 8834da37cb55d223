"""Long pastes: in the line a word stands for each, and the message is sent with their text."""

from __future__ import annotations

import re

_LONG = 10  # lines
_LIKE_A_WORD = re.compile(r"\[pasted \d+[^\]\n]{0,12}\]?")


class Pastes:
    """The words, and what they stand for."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def fold(self, text: str) -> str:
        """What goes into the line: a word for a long text, a short one as it is."""
        lines = text.count("\n") + (not text.endswith("\n"))
        if lines <= _LONG:
            return text
        word = f"[pasted {lines} lines]"
        number = 1
        while self._texts.get(word, text) != text:
            number += 1
            word = f"[pasted {lines} lines, {number}]"
        self._texts[word] = text
        return word

    def unfold(self, line: str) -> str:
        """The line with the texts that words stand for."""
        for word, text in self._texts.items():
            line = line.replace(word, text)
        return line

    def span(self, line: str, at: int) -> tuple[int, int] | None:
        """Where the word begins and ends that the character at `at` is a part of."""
        for word in self._texts:
            begin = line.find(word, max(0, at - len(word) + 1))
            if 0 <= begin <= at:
                return begin, begin + len(word)
        return None

    def stray(self, line: str) -> str:
        """A note about what looks like one of the words and stands for nothing; "" where there is none."""
        for word in self._texts:
            line = line.replace(word, "")
        found = _LIKE_A_WORD.search(line)
        return f"{found[0].rstrip()} stands for no pasted text, and is sent as it is." if found else ""
