"""Where the blocks of Markdown begin, while it arrives in pieces: finished ones can be printed for good.

CommonMark is read line by line and never reopens a block, so every top-level block before the last
one is final. Input is sanitised text: its only line ends are newlines.
"""

from __future__ import annotations

import functools
import re
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the parser is imported when it is first used, behind the prompt
    from markdown_it import MarkdownIt
    from markdown_it.parser_block import RuleFuncBlockType as Rule
    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token

importing = threading.RLock()
"""Who imports Markdown's parser holds it: it imports itself in circles, in which two threads would meet."""
_MATH = ((r"\(", r"\)"), (r"\[", r"\]"), ("$$", "$$"))
"""How models begin and end LaTeX. Terminals cannot draw it; it is left as it was written."""

_DEEPEST = 17
"""Levels in which a list, which takes two, still begins; at 20 the parser gives up."""


def _math_inline(state: StateInline, silent: bool) -> bool:
    """`\\(a_1\\)` within a line is text, in which nothing means emphasis or an escape."""
    for begin, end in _MATH:
        if state.src.startswith(begin, state.pos):
            at = state.src.find(end, state.pos + 2, state.posMax)
            if at < 0:
                return False
            if not silent:
                state.pending += state.src[state.pos : at + 2]
            state.pos = at + 2
            return True
    return False


def _math_block(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    """From a line that begins with `$$` or `\\[` to one that ends with its counterpart; else to the end."""
    if state.is_code_block(start_line):
        return False
    first = state.getLines(start_line, start_line + 1, state.blkIndent, False).strip()
    end = dict(_MATH[1:]).get(first[:2])
    if end is None or end in first[2:]:  # begun and ended on one line: part of a paragraph
        return False
    if silent:
        return True
    line = start_line + 1
    while line < end_line and (state.isEmpty(line) or state.sCount[line] >= state.blkIndent):
        line += 1
        if state.getLines(line - 1, line, state.blkIndent, False).rstrip().endswith(end):
            break
    state.line = line
    token = state.push("code_block", "code", 0)
    token.content = state.getLines(start_line, line, state.blkIndent, True)
    token.map = [start_line, line]
    return True


def _not_too_deep(rule: Rule) -> Rule:
    """The rule of a block that holds others; what would be too deep in stays text, with its marks."""

    def bounded(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
        return state.level < _DEEPEST and rule(state, start_line, end_line, silent)

    return bounded


def parser() -> MarkdownIt:
    """Of the Markdown that models write: CommonMark, tables, strikethrough, and LaTeX left as it is.

    Nothing of an answer may vanish, so what rich would swallow is left as text: HTML, the targets of images,
    and link definitions (which also would let a later block change an earlier one). So is what is nested so
    deeply that the parser would pass over it, and over all that follows.
    """
    with importing:
        from markdown_it import MarkdownIt
        from markdown_it.rules_block import blockquote, list_block

    made = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
    made.disable(["image", "reference"])
    made.block.ruler.at("list", _not_too_deep(list_block), {"alt": ["paragraph", "blockquote"]})
    made.block.ruler.at("blockquote", _not_too_deep(blockquote), {"alt": ["paragraph", "blockquote", "list"]})
    made.inline.ruler.before("escape", "math", _math_inline)
    made.block.ruler.before("fence", "math", _math_block, {"alt": ["paragraph", "blockquote", "list"]})
    return made


@functools.cache
def _block_parser() -> MarkdownIt:
    """Finds where blocks begin, and nothing more."""
    made = parser()
    made.core.ruler.enableOnly(["normalize", "block"])
    return made


class BlockSplitter:
    """Stream decoder: `feed` text in any cut, get the source of the blocks that became final.

    The open part is parsed only when a line came that may begin another block; that a long paragraph, list or
    code block goes on is seen at the line alone. So the cost of a token does not grow with the block.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []  # whole lines of what is open
        self._begun = ""  # a line that has only begun decides nothing
        self._block: Token | None = None  # the newest top-level block, when last parsed

    @property
    def open(self) -> str:
        """The source of what may still change."""
        return "\n".join([*self._lines, self._begun])

    def feed(self, text: str) -> list[str]:
        *whole, rest = text.split("\n")
        if not whole:
            self._begun += rest
            return []
        whole[0], self._begun = self._begun + whole[0], rest
        self._lines += whole
        if all(_goes_on(self._block, line) for line in whole):
            return []
        tokens = _top_level("\n".join(self._lines))
        self._block = tokens[-1] if tokens else None
        if self._block is not None and self._block.type == "paragraph_open" and not self._lines[-1].strip():
            self._block = None
        if len(tokens) < 2:
            return []
        starts = [token.map[0] for token in tokens if token.map]
        final = _cut(self._lines[: starts[-1]], starts[:-1])
        del self._lines[: starts[-1]]
        return final

    def flush(self) -> list[str]:
        """All that is left, as final blocks."""
        text = self.open
        self._lines, self._begun, self._block = [], "", None
        if not text:
            return []  # nor is the parser imported for it
        return _cut(text.split("\n"), [t.map[0] for t in _top_level(text) if t.map])


def blocks(source: str) -> list[str]:
    """The blocks of a whole text."""
    splitter = BlockSplitter()
    return splitter.feed(source) + splitter.flush()


def _top_level(text: str) -> list[Token]:
    """The tokens that begin the top-level blocks."""
    return [t for t in _block_parser().parse(text) if t.level == 0 and t.nesting >= 0 and t.map]


def _goes_on(block: Token | None, line: str) -> bool:
    """Whether this line surely begins no block after `block`. A doubtful one is parsed."""
    if block is None:
        return False
    if block.type == "fence":
        return block.markup not in line
    if block.type == "paragraph_open":  # parsed at its blank line, behind which nothing goes on
        return _PROSE.match(line) is not None
    if not line.strip():
        return True
    if block.type == "code_block":
        return line.startswith("    ")
    if block.type == "table_open":
        return line.startswith("|")
    if block.type == "blockquote_open":
        return line.startswith(">")
    if block.type in ("bullet_list_open", "ordered_list_open"):
        if line.startswith("  "):
            return True
        mark = re.match(r"(?:[-+*]|\d{1,9}[.)])(?= )", line)
        return mark is not None and mark[0][-1] == block.markup and not _RULE.match(line)
    return False


_PROSE = re.compile(r"[^\s#>+\-*_=`~|:$\\\d]|[*_]{1,3}[^\W_]|`{1,2}[^`]|\d+[^\d.)]")
"""How a line begins that cannot begin a block but, by the line after it, a table."""
_RULE = re.compile(r"([-*_])[ \t]*(?:\1[ \t]*){2,}$")


def newest(source: str, rows: int) -> str:
    """The end of a block, enough for its last `rows` rows: what is open is drawn again and again."""
    if rows < 1:
        return ""
    lines = source.split("\n")
    if len(lines) > 2 * rows:
        fence = re.match(r"(`{3,}|~{3,})", lines[0])
        lines = [*([lines[0]] if fence else []), *lines[-rows:]]
    longest = rows * _LONGEST_ROW
    return "\n".join(line[-longest:] for line in lines)


_LONGEST_ROW = 400
"""Cells of the widest terminal that is reckoned with."""


def _cut(lines: list[str], starts: list[int]) -> list[str]:
    bounds = zip(starts, [*starts[1:], len(lines)], strict=False)
    return ["\n".join(lines[a:b]).rstrip("\n") for a, b in bounds]
