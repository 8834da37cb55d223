"""How one block of Markdown looks.

Blocks are rendered one by one whether they were streamed or not, which makes the two equal.
"""

from __future__ import annotations

from typing import Any, ClassVar

from markdown_it.rules_core import StateCore
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import BlockQuote, CodeBlock, Heading, Markdown
from rich.syntax import Syntax
from rich.text import Text

from .blocks import parser
from .sanitize import sanitize


def _keep_line_ends(state: StateCore) -> None:
    """A newline a model writes is meant: poems, addresses and sums are not one paragraph line."""
    for token in state.tokens:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"


def _keep_safe(state: StateCore) -> None:
    """`&#x202e;` was harmless until the parser read it."""
    for token in state.tokens:
        for child in token.children or ():
            child.content = sanitize(child.content)


_PARSER = parser()
_PARSER.core.ruler.push("keep_line_ends", _keep_line_ends)
_PARSER.core.ruler.push("keep_safe", _keep_safe)


class _Heading(Heading):
    """Left-aligned at every level."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = self.text.copy()
        text.justify = "left"
        text.stylize("bold")
        yield text


class _Quote(BlockQuote):
    """As wide as its bar leaves it: rich gives away two cells more, and of nested ones nothing is left."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from super().__rich_console__(console, options.update(width=options.max_width + 2))


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
        "blockquote_open": _Quote,
        "fence": _Code,
        "code_block": _Code,
    }

    def __init__(self, source: str) -> None:
        super().__init__("", hyperlinks=False)
        self.parsed = _PARSER.parse(source)
