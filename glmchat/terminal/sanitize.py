"""Untrusted text made safe for a screen: nothing in it can become a terminal control sequence.

Controls are shown, not dropped, so that a person sees what was tried: ESC as ␛, BEL as ␇, an 8-bit
CSI as <U+009B>, a right-to-left override as <U+202E>. Newline, tab and all other text stay as they
are. With no ESC, BEL or C1 byte left, no CSI, OSC or DCS sequence can form.
"""

from __future__ import annotations

import re

# C0 except \t \n \r, DEL and C1, bidirectional embeddings, overrides and isolates, lone surrogates.
_UNSAFE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)  # the Control Pictures block mirrors C0
    if code == 0x7F:
        return "␡"
    if 0xD800 <= code <= 0xDFFF:
        return "\ufffd"  # cannot be encoded at all
    return f"<U+{code:04X}>"


class Sanitizer:
    """Stream decoder: `feed` untrusted text in any cut, get text that is safe to write to a terminal.

    CR LF becomes LF; a CR alone, which would overwrite the line, is shown as ␍.
    """

    def __init__(self) -> None:
        self._held_cr = False

    def feed(self, text: str) -> str:
        if self._held_cr:
            text = "\r" + text
        self._held_cr = text.endswith("\r")
        if self._held_cr:
            text = text[:-1]
        return _UNSAFE.sub(_shown, text.replace("\r\n", "\n").replace("\r", "␍"))

    def flush(self) -> str:
        """What was held back: a final CR."""
        held, self._held_cr = self._held_cr, False
        return "␍" if held else ""


def sanitize_json(text: str) -> str:
    """JSON in one line that means the same: what is unsafe stands in it as an escape, so it can be edited."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def sanitize(text: str) -> str:
    """A whole text at once."""
    decoder = Sanitizer()
    return decoder.feed(text) + decoder.flush()
