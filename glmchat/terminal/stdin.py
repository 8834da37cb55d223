"""What was piped in, and how it joins the question."""

from __future__ import annotations

import sys
from typing import BinaryIO

from ..engine.base import LONGEST_TOKEN
from ..errors import ContextFullError, UsageError

MAX_BYTES = 131_072 * LONGEST_TOKEN
"""What a context of 128K tokens, GLM-4.5's, holds at the very most."""


def compose(question: str | None) -> str:
    """The prompt of a one-shot run: piped text first, as context, then the question.

    Raises UsageError when there is neither, or when either is not UTF-8 text.
    """
    if question is not None:
        try:
            question.encode()
        except UnicodeEncodeError:
            raise UsageError("The prompt is not valid UTF-8; check the encoding of your terminal.") from None
    piped = "" if sys.stdin is None or sys.stdin.isatty() else read_text(sys.stdin.buffer)
    parts = [part for part in (piped, question) if part and not part.isspace()]
    if not parts:
        raise UsageError(
            'Nothing to answer: give a prompt (glmchat -- "hello") or pipe text in (echo hi | glmchat).'
        )
    return "\n\n".join(part.strip("\n") if part is piped else part for part in parts)


def read_text(stream: BinaryIO) -> str:
    """All of a stream as text, refused early when no context could hold it or it is not UTF-8."""
    data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ContextFullError(
            f"Stdin holds more than {MAX_BYTES // 2**20} MiB, which no model's context can take "
            "(GLM-4.5: 128K tokens, half a MiB of English); send a part: head -c 400000 FILE | glmchat …"
        )
    if (at := data.find(b"\0")) >= 0:
        raise UsageError(
            f"Stdin is not text: it holds a NUL byte at offset {at}. Convert it first "
            "(UTF-16: iconv -f UTF-16 -t UTF-8; PDF: pdftotext FILE -; other binaries: strings FILE)."
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise UsageError(
            f"Stdin is not UTF-8: byte 0x{data[e.start]:02x} at offset {e.start}. "
            "Convert it first, for example: iconv -f LATIN1 -t UTF-8 FILE | glmchat …"
        ) from None
