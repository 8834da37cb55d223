"""Long pastes: in the line a word stands for each, and the message is sent with their text."""

from __future__ import annotations

import re

_LONG, _WIDE = 10, 4000  # lines, characters
_LIKE_A_WORD = re.compile(r"\[pasted \d[^\]\n]{0,24}\]?")


class Pastes:
    """The words, and what they stand for."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def fold(self, text: str) -> str:
        """What goes into the line: a word for a long text, a short one as it is."""
        lines = text.count("\n") + (not text.endswith("\n"))
        if lines <= _LONG and len(text) <= _WIDE:
            return text
        size = f"{lines} lines" if lines > _LONG else f"{len(text):,} characters"
        word = f"[pasted {size}]"
        number = 1
        while self._texts.get(word, text) != text:
            number += 1
            word = f"[pasted {size}, {number}]"
        self._texts[word] = text
        return word

    def unfold(self, line: str) -> str:
        """The line with the texts that words stand for."""
        if not self._texts:
            return line
        words = "|".join(map(re.escape, self._texts))  # all at once: a text may hold what looks like one
        return re.sub(words, lambda word: self._texts[word[0]], line)

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
