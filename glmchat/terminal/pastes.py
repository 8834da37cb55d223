"""Long pastes: in the line a word stands for each, and the message is sent with their text."""

from __future__ import annotations

_LONG = 10  # lines


class Pastes:
    """The words, and what they stand for."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def fold(self, text: str) -> str:
        """What goes into the line: a word for a long text, a short one as it is."""
        lines = text.count("\n") + 1
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
