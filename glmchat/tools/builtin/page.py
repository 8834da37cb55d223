"""HTML as text that reads well: blocks on lines of their own, links with where they lead, no scripts."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from urllib.parse import urljoin

_SILENT = {"script", "style", "template", "svg", "iframe"}
_BLOCK = re.compile(
    "address|article|aside|br|dd|div|dl|dt|fieldset|figcaption|figure|footer|form|header|hr|li|main|nav|option"
    "|section|title|tr"
)
_SPACED = re.compile("blockquote|h[1-6]|ol|p|pre|table|ul")
"""Blocks with a blank line around them."""

_CHARSET = re.compile(rb"<meta[^>]{0,200}charset=[\"']?([A-Za-z0-9_-]{1,40})", re.IGNORECASE)
_SPACE = re.compile(r"\s+")


def text(html: str, url: str) -> str:
    """The text of a page that came from `url`."""
    reader = _Reader(url)
    reader.feed(html)
    reader.close()
    return reader.text()


def charset(html: bytes) -> str:
    """What a page says about itself near its beginning."""
    found = _CHARSET.search(html[:2048])
    return found[1].decode() if found else ""


class _Reader(HTMLParser):
    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._lines: list[str] = []
        self._line: list[str] = []
        self._silent, self._depth = "", 0
        self._verbatim = False
        self._link = ""
        self._label: list[str] = []

    def text(self) -> str:
        self._end_link()
        self._break()
        return "\n".join(self._lines).strip("\n")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._silent or tag in _SILENT:
            self._silent = self._silent or tag
            self._depth += tag == self._silent
            return
        self._around(tag)
        given = dict(attrs)
        if tag == "a":
            self._end_link()
            self._link = self._led(given.get("href") or "")
        elif tag == "li":
            self._line.append("- ")
        elif tag in ("td", "th") and self._line:
            self._line.append(" | ")
        elif tag == "img":
            self.handle_data(given.get("alt") or "")
        elif re.fullmatch("h[1-6]", tag):
            self._line.append("#" * int(tag[1]) + " ")
        elif tag == "pre":
            self._verbatim = True

    def handle_endtag(self, tag: str) -> None:
        if self._silent:
            self._depth -= tag == self._silent
            self._silent = self._silent if self._depth else ""
            return
        if tag == "a":
            self._end_link()
        self._around(tag)
        if tag == "pre":
            self._verbatim = False

    def handle_data(self, data: str) -> None:
        if self._silent:
            return
        if self._verbatim:
            first, *others = data.split("\n")
            self._line.append(first)
            for line in others:
                self._break(blank=True)
                self._line.append(line)
        else:
            self._line.append(_SPACE.sub(" ", data))
        if self._link:
            self._label.append(data)

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        """Pass over `<![…>`, on which some versions of Python give up."""
        end = self.rawdata.find(">", i)
        return end + 1 if end >= 0 else -1

    def _led(self, href: str) -> str:
        """Where a link leads, when it is another page."""
        try:
            joined = urljoin(self._url, href.strip())
        except ValueError:
            return ""
        return joined if href and not href.startswith("#") and joined.startswith(("http:", "https:")) else ""

    def _end_link(self) -> None:
        label = "".join(self._label).strip()
        if self._link and label and label != self._link:
            self._line.append(f" ({self._link})")
        self._link, self._label = "", []

    def _around(self, tag: str) -> None:
        spaced = _SPACED.fullmatch(tag)
        if spaced or _BLOCK.fullmatch(tag):
            self._break()
        if spaced and self._lines and self._lines[-1]:
            self._lines.append("")

    def _break(self, *, blank: bool = False) -> None:
        """End the line. An empty one is kept when `blank`, but never two of them."""
        line = "".join(self._line)
        line = line.rstrip() if self._verbatim else _SPACE.sub(" ", line).strip()
        self._line = []
        if line or (blank and self._lines and self._lines[-1]):
            self._lines.append(line)
