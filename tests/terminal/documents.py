"""Markdown documents: one for each construct of CommonMark and its kin, and what models write."""

from __future__ import annotations

DOCUMENTS = [
    # thematic breaks and what looks like them
    "***\n---\n___\n+++\n--\n - - -\n * * * * *\n- a\n***\n- b\n\n_ _ x",
    # ATX headings, closed, empty, too many, escaped
    "# one\n###### six\n####### seven\n#no\n\\## no\n## closed ##\n#\n   # three in\n\ttab",
    # setext headings
    "Title\n=====\nTwo\nlines\n---\n\n> q\n---\n- l\n---\nLast\n=",
    # indented code, with blank lines and in lists
    "    code\n\n\n      deeper\n\ntext\n    lazy\n\n- item\n\n      code in it\n",
    # fences: long, with an info string, unequal, unclosed, nested in other blocks
    "````\n```\n````\n~~~ py x\na\n```\n~~~\n> ```\n> in\nout\n\n- ```\n  in\n\n  ```\n```open\nto the\n\nend",
    # HTML, which is text here
    "<div>\n*x*\n\n</div>\n<!-- a\n\nb -->\n<script>\nalert(1)\n</script>\ntext <b>in</b> line",
    # link definitions, which are text here
    '[a]: /url "t"\n[a]\n\n[b]: <x\ny>\n> [c]: /z\n\n[a][b]',
    # paragraphs, blank lines, hard breaks
    "a\nb\n\n\n\nc  \nd\\\ne\n   f\n \t \ng",
    # block quotes: lazy, nested, empty, with blocks inside
    "> a\nb\n> # c\n>\n> - d\n>   e\n\n>> f\n> g\n>\n\n>     code\nnot lazy\n- - -",
    # lists: markers, starts, loose and tight, changed markers
    "- a\n- b\n* c\n+ d\n\n1. e\n2) f\n3) g\n\n0. h\n1234567890. no\n-x\n- \n- y\n\n\n  z",
    # list items: nested, indented, with code, interrupted
    " -    a\n\n   b\n  - c\n    - d\n      - e\n - f\n\ng\n- h\n14. no start\n1. start",
    # a list that ends in a comment-like line and goes on
    "- a\n- b\n\n<!-- -->\n\n- c\n- d\n\nend",
    # tables: aligned, ragged, ended by other blocks, without outer pipes
    "| a | b |\n|:--|--:|\n| 1 | 2 |\n| 3 |\n> q\n\na | b\n-|-\n1 | 2\n\n| no |\n| table |\n\n| x |\n|---|\n# h",
    # inline code, emphasis, strikethrough, escapes, entities
    "`a *b*` **c `d` e** *f **g** h* ~~i~~ \\*j\\* &amp; &#35; ``k ` l``\n**open *and\n\nnever closed",
    # links, autolinks, images
    "[a](http://x) <http://y> ![b](z.png) [c](<d e> 'f') [g](\nh) http://bare",
    # LaTeX
    "so \\(a_1 * b_1\\) and $$x*y*z$$\n\n$$\n- a\n# b\n$$\nafter\n\\[\n*c*\n\n+ d\n\\]\n- in $$ one $$\n  $$\n  e\n  $$\n\n$$ open",
    # CJK, emoji, right-to-left
    "# 标题\n\n你好，**世界**。\n\n- 一\n- 二 🎉👨‍👩‍👧\n\n| 名 | 值 |\n|---|---|\n| 甲 | 1 |\n\nשלום עולם\n\nمرحبا",
    # tabs and odd line ends
    "\tcode\n-\ta\n\n\tb\n1.\tc\n>\td\nx\u00a0y\u2028z\n\n\n",
    # what models write
    "Sure! Here is the plan:\n\n1. **First**, do this:\n   ```sh\n   make\n   ```\n2. Then:\n   - a\n   - b\n\n---\n\n> Note: *careful*.\n\nDone.",
    "<think>\nnot closed\n\n**Answer:** 4",
    "Line one\nLine two\nLine three\n\n    — a poet\n\n* * *\n\nThe end",
    '```diff\n- a\n+ b\n```\n\n```json\n{"a": [1, 2]}\n```\n```\n\n\n```',
    "1. a\n\n   b\n\n2. c\n3. d\n   1. e\n   2. f\n\n      g\n4. h",
    "- [ ] todo\n- [x] done\n  - [ ] sub\n\nTerm\n: definition\n\nNote[^1]\n\n[^1]: foot",
    "a\n***\nb\n___\nc\n---\nd\n===\ne\n# f\n> g\n- h\n1. i\n2. j\n```\nk\n```\nl",
    "|a|\n|-|\n|`x|y`|\n|\\||\ntext after",
    ">- a\n>- b\n>\n>c\n- d\n>e",
    "#\n##\n-\n*\n+\n1.\n>\n```\n",
    "\n\n\n  \n\ttext\n\n\n",
    "",
    "no line end",
]
