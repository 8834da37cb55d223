"""Token ids to text, one at a time."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class Detokenizer:
    """Turns each new id into the text that it completes, "" while a character is still incomplete.

    Control tokens come out as their text. Bytes that never complete a character are never shown.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = self._new_stream()

    def feed(self, token_id: int) -> str:
        try:
            return self._stream.step(self._tokenizer, token_id) or ""
        except Exception:  # a plain Exception: the text so far is no prefix of the longer text
            self._stream = self._new_stream()
            return self._stream.step(self._tokenizer, token_id) or ""

    @staticmethod
    def _new_stream() -> DecodeStream:
        return DecodeStream(skip_special_tokens=False)
