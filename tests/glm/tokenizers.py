"""Small real tokenizers of the kinds that chat models use, each with GLM-4.5's control tokens."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPECIAL = [
    "<|endoftext|>",
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
]
MARKUP = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "/nothink",
]
CONTROL = [*SPECIAL, *MARKUP]
DEMO = Path(__file__).resolve().parents[2] / "glmchat" / "demo" / "tokenizer.json"

CORPUS = [
    Path(__file__).read_text(encoding="utf-8"),
    'You may call one or more functions. {"type": "function", "name": "get_weather"}',
    "Hello there, how are you today? I am fine, thank you. <b>bold</b> [link](url) a/b /nothing",
    "你好，世界！今天天气怎么样？ Ça va très bien, über Ärger. Привет, как дела? 🎉👍",
] * 3


def glm() -> Tokenizer:
    """As GLM-4.5's own: byte-level BPE; the markup tokens are added, but not special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=900, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    return _with_control(tokenizer)


def spaces() -> Tokenizer:
    """As GPT-NeoX's: runs of spaces are added tokens, which are no control tokens; NFC; prefix space."""
    tokenizer = glm()
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in range(2, 9)])
    return tokenizer


def metaspace(scheme: str = "first") -> Tokenizer:
    """As newer Llama-like ones: BPE over ▁-separated words with byte fallback."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    _train_fallback(tokenizer)
    return _with_control(tokenizer)


def llama() -> Tokenizer:
    """As Llama 2's: the normalizer itself puts ▁ before every stretch, and in place of spaces."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    _train_fallback(tokenizer)
    return _with_control(tokenizer)


def stripping() -> Tokenizer:
    """As Phi-3's: control tokens that swallow the white space beside them."""
    tokenizer = metaspace("always")
    tokenizer.add_special_tokens(
        [AddedToken(t, rstrip=True, normalized=False, special=True) for t in ("<|user|>", "<|assistant|>")]
    )
    tokenizer.add_tokens([AddedToken("</think>", lstrip=True, rstrip=True, normalized=False)])
    return tokenizer


def unigram() -> Tokenizer:
    """As T5's: the vocabulary itself holds the control tokens, so text can reach them without added ones."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never", split=False)
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=500, special_tokens=["<unk>", *CONTROL], unk_token="<unk>", show_progress=False
        ),
    )
    return _with_control(tokenizer)


def _train_fallback(tokenizer: Tokenizer) -> None:
    bytes_ = [f"<0x{n:02X}>" for n in range(256)]
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=900, special_tokens=["<unk>", *bytes_], show_progress=False),
    )


def _with_control(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in MARKUP])
    return tokenizer


KINDS = {f.__name__: f for f in (glm, spaces, metaspace, llama, stripping, unigram)}
