"""The demo's tokenizer: byte-level BPE with GLM-4.5's control tokens under their names.

What makes copying learnable decides how text is cut: a space, a digit and a Chinese character always stand
alone, so a word has the same pieces wherever it stands. The commonest words are kept whole; every other
word is cut behind its first letter, so that "Reserve" in a question and "reserve" in a tool's name differ in
one letter and share the rest. The fixed lines of the tool block and the punctuation of JSON are cut whole,
so that merges can make them short.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = """<|endoftext|> [MASK] [gMASK] [sMASK] <sop> <eop> <|system|> <|user|> <|assistant|> <|observation|>
<|begin_of_image|> <|end_of_image|> <|begin_of_video|> <|end_of_video|> <|begin_of_audio|> <|end_of_audio|>
<|begin_of_transcription|> <|end_of_transcription|> <|code_prefix|> <|code_middle|> <|code_suffix|>""".split()
NOT_SPECIAL = """<think> </think> <tool_call> </tool_call> <tool_response> </tool_response> <arg_key> </arg_key>
<arg_value> </arg_value> /nothink""".split()
EOS = ("<|endoftext|>", "<|user|>", "<|observation|>")

_FIXED = (
    r"# Tools\n\nYou may call one or more functions to assist with the user query\.\n\n"
    r"You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n",
    r"\n</tools>\n\nFor each function call, output the function name and arguments within the following XML format:\n",
    r"\{function-name\}|\{arg-key-\d\}|\{arg-value-\d\}",
)
_LETTER = r"[\p{L}&&[^\p{Han}]]"
WHOLE_WORDS = 500
"""How many of the commonest words are kept whole."""


def _cuts(texts: Sequence[str]) -> str:
    """The regular expression that cuts text into the pieces within which tokens are merged."""
    counts = Counter(w for t in texts for w in re.findall(r"[A-Za-z]{2,}", t))
    common = sorted((w for w, _ in counts.most_common(WHOLE_WORDS)), key=len, reverse=True)
    return "|".join(
        (
            *_FIXED,
            r"\d",
            r"\p{Han}",
            rf"(?<!{_LETTER})(?:{'|'.join(common)})(?!{_LETTER})",
            rf"(?<!{_LETTER}){_LETTER}",
            rf"{_LETTER}+",
            r'[{}\[\]":,]+(?: [{}\[\]":,]+)*',
            r"`+|\|| --- \|",
            r"\n+ *",
            r" {2,}",
            r".",
        )
    )


def train_tokenizer(texts: Sequence[str], *, size: int) -> Tokenizer:
    """A tokenizer of `size` tokens in all, its merges learned from `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_cuts(texts)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SPECIAL) - len(NOT_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=2,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # As in GLM-4.5, the control tokens come after the vocabulary, and only the first group is `special`.
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in NOT_SPECIAL])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, template: str, *, context: int) -> None:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja, as transformers reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": SPECIAL,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "padding_side": "left",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
