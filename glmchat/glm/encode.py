"""Conversations become token ids; text that people, files, tools or models supply never becomes control.

1. Before rendering, a mark goes into every place of supplied text where a control token could start, so
   that none can match there; the template's own tests on the text (`.endswith('/nothink')`,
   `.split('</think>')`) do not see one either.
2. In the rendered text each control token, which now can only be the template's, is replaced by a
   one-character stand-in, and the marks are taken out: the supplied text is again what it was.
3. A tokenizer with the same model but no added tokens other than the stand-ins encodes the whole in one
   go; the stand-ins' ids give way to the control tokens'.
4. What stands before a control token has no part in the ids behind it. So of a text that begins as the one
   before it only the rest is encoded: a turn costs what is new in it; one that was read ahead, nothing.

Stand-ins and marks are Unicode noncharacters, which no text should contain; they are removed from what
comes in. For text that spells no control token the ids are those of the plain way: render, then encode.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Encoding, Tokenizer

from ..errors import ModelError
from ..messages import Message, normalize
from .template import ChatTemplate, template_messages, thinking_open

_MARK = "\ufdd0"
_CUT = "\ufdd1"
_STAND_INS = tuple("\ufdd2\ufdd3\ufdd4\ufdd5\ufdd6\ufdd7\ufdd8\ufdd9")
_UNKNOWN = "\ufdef"
_DROPPED = -1
_REMEMBERED = 1024
"""Texts. Most of a conversation come again in its next turn; to disarm them takes as long as to render it."""
LONG = 1 << 16
"""Characters; to encode more takes so long, seconds for a million, that a person may want to stop it."""
_RESERVED = re.compile(f"[{_MARK}-{_STAND_INS[-1]}]")
_LONE_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt: its text, and the ids that spell it. `thinking_open`: it ends inside a think block."""

    text: str
    ids: list[int]
    thinking_open: bool


class PromptEncoder:
    """Encodes conversations for one tokenizer and one template. Cheap to make: the model is shared."""

    def __init__(self, tokenizer: Any, template: str | Path | ChatTemplate = "glm-4.5") -> None:
        """`tokenizer`: a `tokenizers.Tokenizer`, the path of a tokenizer.json, or a fast transformers one."""
        self.template = ChatTemplate.load(template)
        self._controls = _Controls(_backend(tokenizer))
        self._last: tuple[Any, Prompt] | None = None

    def encode(
        self,
        messages: Iterable[Message | Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        enable_thinking: bool | None = None,
        clear_thinking: bool | None = None,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        """Render and encode, but not the same twice in a row. Raises: ConversationError, TemplateError."""
        controls = self._controls
        told = normalize(messages)
        toggles = (enable_thinking, clear_thinking, add_generation_prompt)
        # What can be changed later, or be equal and yet not the same as 1 and True are, is compared as text.
        asked = told, repr((tools, toggles, [m.tool_calls for m in told if m.tool_calls]))
        if (last := self._last) is not None and last[0] == asked:
            return last[1]
        marked = self.template.render(
            [{**controls.disarm(m), "role": m["role"]} for m in template_messages(told)],
            controls.disarm(tools),
            enable_thinking=enable_thinking,
            clear_thinking=clear_thinking,
            add_generation_prompt=add_generation_prompt,
        )
        text = marked.replace(_MARK, "")
        prompt = Prompt(text, controls.encode(marked), add_generation_prompt and thinking_open(text))
        self._last = asked, prompt
        return prompt


def encode_prompt(
    tokenizer: Any,
    messages: Iterable[Message | Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    template: str | Path | ChatTemplate = "glm-4.5",
    enable_thinking: bool | None = None,
    clear_thinking: bool | None = None,
    add_generation_prompt: bool = True,
) -> list[int]:
    """The ids of a prompt. Control tokens come from the template alone, never from the messages or tools.

    `tokenizer`: a `tokenizers.Tokenizer`, the path of a tokenizer.json, or a fast transformers tokenizer.
    Raises: ConversationError for malformed messages, TemplateError when the template refuses them.
    """
    return (
        PromptEncoder(tokenizer, template)
        .encode(
            messages,
            tools,
            enable_thinking=enable_thinking,
            clear_thinking=clear_thinking,
            add_generation_prompt=add_generation_prompt,
        )
        .ids
    )


_Place = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Encoded:
    """Rendered text and its ids. `places`: of its control tokens, where each begins and ends in the text, and
    stands in the ids."""

    marked: str = ""
    ids: tuple[int, ...] = ()
    places: tuple[_Place, ...] = ()

    def shared_with(self, marked: str, reach: int) -> tuple[_Place, ...]:
        """Those places up to which `marked` is the same, and for `reach` characters more."""
        count = bisect_left(
            self.places, True, key=lambda at: self.marked[: at[1] + reach] != marked[: at[1] + reach]
        )
        return self.places[:count]


class _Controls:
    """The control tokens of a tokenizer: keeps them out of supplied text, encodes them in rendered text.

    They are the added tokens of more than one character, white space apart: added runs of spaces are
    vocabulary like any other.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        added = tokenizer.get_added_tokens_decoder()
        control = {i: t for i, t in added.items() if len(t.content) > 1 and not t.content.isspace()}
        others = {i: t for i, t in added.items() if i not in control}
        self._ids = {t.content: i for i, t in control.items()}
        self._stand_ins = {t.content: _stand_in(t) for t in control.values()}
        self._strips = any(t.lstrip or t.rstrip for t in control.values())
        self._reach = _reach(self._ids)
        model = tokenizer.model
        # Tokens whose ids are not what the bare tokenizer gives them; None: the next control token's.
        self._replaced: dict[str, int | None] = {
            **dict.fromkeys(self._stand_ins.values()),
            _CUT: _DROPPED,
            **{t.content: i for i, t in others.items()},
        }

        starts = _starts(self._ids)
        patterns = [rf"{re.escape(first)}(?=[{re.escape(seconds)}])" for first, seconds in starts.items()]
        if starts:  # the rest of the token could come from what follows this text
            patterns.append(rf"[{re.escape(''.join(starts))}](?=\s*\Z)")
        self._start = _any_of(patterns, re.IGNORECASE)
        self._disarmed = lru_cache(_REMEMBERED)(self._disarm)
        self._token = _any_of(map(re.escape, sorted(self._ids, key=len, reverse=True)))

        self._bare = Tokenizer(model)
        if tokenizer.normalizer is not None:
            self._bare.normalizer = tokenizer.normalizer
        if tokenizer.pre_tokenizer is not None:
            self._bare.pre_tokenizer = tokenizer.pre_tokenizer
        tokens = {_stand_in(t): t for t in control.values()}
        stand_ins = [
            AddedToken(c, normalized=t.normalized, lstrip=t.lstrip, rstrip=t.rstrip)
            for c, t in tokens.items()
        ]
        self._bare.add_tokens([*others.values(), *stand_ins, AddedToken(_CUT, normalized=False)])
        # Control tokens that the model itself could make of text. What it makes of unknown text spells none.
        unknown = self._encode(_UNKNOWN).tokens
        self._reachable = {c for c in self._ids if model.token_to_id(c) is not None and c not in unknown}
        # Where stand-ins are looked for in normalized text, that text is normalized across them.
        across = tokenizer.normalizer is not None and any(t.normalized for t in control.values())
        self._resumes = not (across or self._reachable)
        self._last = _Encoded()

    def disarm(self, value: Any) -> Any:
        """Supplied data, of any JSON form, with a mark wherever its text could start a control token."""
        if isinstance(value, str):
            return self._disarmed(value)
        if isinstance(value, Mapping):
            return {self.disarm(k): self.disarm(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self.disarm(v) for v in value]
        return value

    def _disarm(self, text: str) -> str:
        sound = _LONE_SURROGATES.sub("\ufffd", _RESERVED.sub("", text))
        return self._start.sub(rf"\g<0>{_MARK}", sound)

    def encode(self, marked: str) -> list[int]:
        """The ids of rendered text; its marks are taken out and what stands at them stays text."""
        last = self._last
        places = last.shared_with(marked, self._reach)
        begin, _, known = places[-1] if places else (0, 0, 0)
        rest, more = self._encode_from(marked, begin)
        ids = [*last.ids[:known], *rest]
        if self._resumes:
            self._last = _Encoded(
                marked, tuple(ids), (*places[:-1], *((a, b, known + index) for a, b, index in more))
            )
        return ids

    def _encode_from(self, marked: str, begin: int) -> tuple[list[int], list[_Place]]:
        """The ids of what stands from `begin` on, and the places of its control tokens."""
        found: list[re.Match[str]] = []

        def stand_in(match: re.Match[str]) -> str:
            found.append(match)
            return self._stand_ins[match[0]]

        text = self._token.sub(stand_in, marked[begin:]).replace(_MARK, "")
        encoding = self._encode(text)
        tokens, ids = encoding.tokens, encoding.ids
        # Some vocabularies (Unigram) hold the control tokens as ordinary pieces: cut those apart.
        while cuts := self._cuts(tokens, encoding):
            text = _CUT.join(text[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True))
            encoding = self._encode(text)
            tokens, ids = encoding.tokens, encoding.ids

        if self._strips:  # then a token's text has the white space in it
            tokens = [token.strip() or token for token in tokens]
        controls = iter(found)
        places: list[_Place] = []
        for position in [n for n, token in enumerate(tokens) if token in self._replaced]:
            token_id = self._replaced[tokens[position]]
            if token_id is None:
                control = next(controls)
                places.append((begin + control.start(), begin + control.end(), position))
                token_id = self._ids[control[0]]
            ids[position] = token_id
        if next(controls, None) is not None:
            raise ModelError(
                "The tokenizer's normalizer swallows control tokens; the model cannot be prompted."
            )
        return ([i for i in ids if i != _DROPPED] if _CUT in text else ids), places

    def _encode(self, text: str) -> Encoding:
        if len(text) > LONG:  # alone `encode_batch` lets other threads run meanwhile
            return self._bare.encode_batch([text], add_special_tokens=False)[0]
        return self._bare.encode(text, add_special_tokens=False)

    def _cuts(self, tokens: Sequence[str], encoding: Encoding) -> list[int]:
        """Where text was encoded as a control token: offsets, in characters, at which to cut it in two."""
        if self._reachable.isdisjoint(tokens):
            return []
        spans = (span for t, span in zip(tokens, encoding.offsets, strict=True) if t in self._reachable)
        return [start + 1 for start, end in spans if end - start > 1]


def _backend(tokenizer: Any) -> Tokenizer:
    if isinstance(tokenizer, str | Path):
        try:
            return Tokenizer.from_file(str(tokenizer))
        except Exception as e:  # the library raises plain Exception
            raise ModelError(f"{tokenizer} cannot be read as a tokenizer.json ({e}).") from e
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(backend, Tokenizer):
        raise ModelError(
            f"A {type(tokenizer).__name__} cannot encode prompts; give a fast tokenizer or a tokenizer.json."
        )
    return backend


def _starts(contents: Iterable[str]) -> dict[str, str]:
    """The first characters of the contents, each with the second characters that follow it."""
    starts: dict[str, set[str]] = {}
    for content in contents:
        starts.setdefault(content[0], set()).add(content[1])
    return {first: "".join(sorted(seconds)) for first, seconds in sorted(starts.items())}


def _reach(contents: Collection[str]) -> int:
    """How much of what follows one of the contents can make another of it and of what stands before it."""
    sizes = {len(content) for content in contents}
    within = (
        len(content) - size - at
        for content in contents
        for size in sizes
        for at in range(1, len(content) - size + 1)
        if content[at : at + size] in contents
    )
    return max(within, default=0)


def _any_of(patterns: Iterable[str], flags: int = 0) -> re.Pattern[str]:
    return re.compile("|".join(patterns) or r"(?!)", flags)


def _stand_in(token: AddedToken) -> str:
    """One of eight: a stand-in is matched, and eats white space, as its token would."""
    return _STAND_INS[4 * token.normalized + 2 * token.lstrip + token.rstrip]
