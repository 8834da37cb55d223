"""Markdown that arrives in pieces: finished blocks can be printed for good, only the last is open.

CommonMark is read line by line and never reopens a block, so every top-level block before the last
one is final. Blocks are rendered one by one whether they were streamed or not, which makes the two
equal. Input is sanitised text: its only line ends are newlines.
"""

from __future__ import annotations

from typing import Any, ClassVar

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown
from rich.syntax import Syntax
from rich.text import Text


def _keep_line_ends(state: StateCore) -> None:
    """A newline a model writes is meant: poems, addresses and sums are not one paragraph line."""
    for token in state.tokens:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"


# Nothing of an answer may vanish, so what rich would swallow is left as text: HTML, the targets of
# images, and link definitions (which also would let a later block change an earlier one).
_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
_PARSER.disable(["image", "reference"])
_PARSER.core.ruler.push("keep_line_ends", _keep_line_ends)


class BlockSplitter:
    """Stream decoder: `feed` text in any cut, get the source of the blocks that became final."""

    def __init__(self) -> None:
        self._text = ""

    @property
    def open(self) -> str:
        """The source of what may still change."""
        return self._text

    def feed(self, text: str) -> list[str]:
        self._text += text
        if "\n" not in text:
            return []
        whole, _, begun = self._text.rpartition("\n")  # a line that has only begun decides nothing
        lines = whole.split("\n")
        starts = _block_starts(whole)
        if len(starts) < 2:
            return []
        self._text = "\n".join([*lines[starts[-1] :], begun])
        return _cut(lines[: starts[-1]], starts[:-1])

    def flush(self) -> list[str]:
        """All that is left, as final blocks."""
        text, self._text = self._text, ""
        return _cut(text.split("\n"), _block_starts(text))


def _block_starts(text: str) -> list[int]:
    """The line on which each top-level block begins."""
    return [t.map[0] for t in _PARSER.parse(text) if t.level == 0 and t.nesting >= 0 and t.map]


def _cut(lines: list[str], starts: list[int]) -> list[str]:
    bounds = zip(starts, [*starts[1:], len(lines)], strict=False)
    return ["\n".join(lines[a:b]).rstrip("\n") for a, b in bounds]


class _Heading(Heading):
    """Left-aligned at every level."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = self.text.copy()
        text.justify = "left"
        text.stylize("bold")
        yield text


class _Code(CodeBlock):
    """In the terminal's own colours, without a margin, so that a copy of it is the code."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.lexer_name != "text":
            yield Text(self.lexer_name, style="dim")
        yield Syntax(
            str(self.text).rstrip(),
            self.lexer_name,
            theme="ansi_dark",
            background_color="default",
            word_wrap=True,
        )


class AnswerMarkdown(Markdown):
    """One block of an answer, ready to print. Links show their target: nothing hides behind a text."""

    elements: ClassVar[dict[str, Any]] = {
        **Markdown.elements,
        "heading_open": _Heading,
        "fence": _Code,
        "code_block": _Code,
    }

    def __init__(self, source: str) -> None:
        super().__init__("", hyperlinks=False)
        self.parsed = _PARSER.parse(source)
