"""Texts to tokens: byte-pair encoding with CLIP's published vocabulary, or with one trained on a user's captions.

Byte-pair encoding: Sennrich et al. 2015, arXiv 1508.07909; on bytes: Radford et al. 2019, "Language models are
unsupervised multitask learners"; vocabulary and cleaning: Radford et al. 2021 (CLIP), arXiv 2103.00020. The encoding
itself is done by the library ``tokenizers``.
Differs from the paper: quotation marks, wide letters and ligatures become plain ones, but texts that were decoded
wrongly are not mended.

N texts · L tokens of the longest text, with start and end
"""

from __future__ import annotations

import functools
import gzip
import html
import json
import math
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal, NamedTuple

import tokenizers
import torch
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from saccade.config import Config
from saccade.errors import ConfigError, InputError

_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"
_SPECIALS = 2
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_LETTERS_ALIKE: dict[int, str] = {
    **{ord(letter): "'" for letter in "‘’‛"},
    **{ord(letter): '"' for letter in "“”‟"},
    **{0xFEE0 + code: chr(code) for code in range(0x21, 0x7F)},  # letters as wide as Chinese ones
    **{0xFB00 + place: letters for place, letters in enumerate(("ff", "fi", "fl", "ffi", "ffl", "st", "st"))},
}
"""Letters that mean others: quotation marks, wide letters, ligatures."""
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(Config):
    """A vocabulary; it travels with the weights that were trained on it."""

    kind: Literal["clip", "trained", "library"] = "clip"
    """CLIP's published vocabulary; one trained on captions; or any other, as the library tokenizers writes it down."""
    context: int = 77
    """The most tokens a text may have, start and end counted."""
    vocab_size: int = 49408
    """Number of tokens. Of a trained vocabulary the number aimed at; it has fewer where the texts are few."""
    merges: tuple[str, ...] = ()
    """Of a trained vocabulary: the pairs that were merged, in their order; empty before it is trained."""
    definition: str = ""
    """Of a vocabulary of kind ``library``: its JSON. The text is encoded with the special tokens named there."""
    canonical: bool = False
    """Of a vocabulary of kind ``library``: whether texts are read in lower case and without punctuation."""
    pads_all: bool = False
    """Whether every text is filled up to ``context`` with ``pad``, as models without a causal mask were trained."""
    pad: int = 0
    """Number of the token that fills up."""

    def __post_init__(self) -> None:
        if self.context < 3:
            raise ConfigError(f"context is {self.context}", where="tokenizer.context", expected="at least 3")
        if self.kind == "clip" and self.vocab_size != 49408:
            told = f"the published vocabulary has 49408 tokens, not {self.vocab_size}"
            raise ConfigError(told, where="tokenizer.vocab_size", remedy="set tokenizer.kind=trained for another size")
        if self.vocab_size < 2 * 256 + _SPECIALS and self.kind == "trained":
            least = 2 * 256 + _SPECIALS
            raise ConfigError(
                f"vocab_size is {self.vocab_size}", where="tokenizer.vocab_size", expected=f"at least {least}"
            )
        if (self.kind == "library") != bool(self.definition):
            told = "a vocabulary of kind 'library' and a definition belong together"
            raise ConfigError(told, where="tokenizer.definition")
        if self.merges and self.kind != "trained":
            raise ConfigError("only a trained vocabulary has merges of its own", where="tokenizer.merges")

    @property
    def is_ready(self) -> bool:
        """Whether texts can be encoded; a vocabulary that is to be trained has no merges before."""
        return self.kind != "trained" or bool(self.merges)


class Tokens(NamedTuple):
    """Texts as numbers.

    Attributes:
        ids: ``[N, L]`` int64, filled up behind the end.
        ends: ``[N]`` int64, the place of the token that ends each text.
    """

    ids: Tensor
    ends: Tensor


class Tokenizer:
    """Texts to tokens, with a start and an end token each.

    Args:
        library: encodes texts; adds no special tokens where ``start`` is given.
        config: what it was built from.
        start: number of the start token, or None where the library adds what there is to add.
        end: number of the end token.
    """

    def __init__(
        self, library: tokenizers.Tokenizer, config: TokenizerConfig, *, start: int | None, end: int | None
    ) -> None:
        self.config = config
        self._library, self._start, self._end = library, start, end

    @property
    def vocab_size(self) -> int:
        """Number of tokens that are told apart."""
        return self._library.get_vocab_size() + (_SPECIALS if self._start is not None else 0)

    def __call__(
        self, texts: Sequence[str], *, truncate: bool = False, fills: bool = False, where: str | None = None
    ) -> Tokens:
        """Texts to tokens.

        Args:
            texts: N texts.
            truncate: cut texts that are too long and keep their end token.
            fills: fill all texts up to the context, also where the vocabulary does not ask for it.
            where: file or argument the texts come from, for the message.

        Raises:
            InputError: where a text is longer than the context.
        """
        rows = self._encode(texts)
        context = self.config.context
        for text, row in zip(texts, rows, strict=True):
            if len(row) > context and not truncate:
                shown = text if len(text) <= 60 else f"{text[:57]}..."
                raise InputError(
                    f"the text {shown!r} has {len(row)} tokens",
                    where=where,
                    expected=f"at most {context}, start and end counted",
                    remedy="shorten it",
                )
        rows = [row if len(row) <= context else [*row[: context - 1], row[-1]] for row in rows]
        length = context if self.config.pads_all or fills else max((len(row) for row in rows), default=1)
        ids = torch.full((len(rows), length), self.config.pad, dtype=torch.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return Tokens(ids, torch.tensor([len(row) - 1 for row in rows], dtype=torch.int64))

    def too_long(self, texts: Sequence[str]) -> list[int]:
        """Indices of the texts that are longer than the context."""
        return [index for index, row in enumerate(self._encode(texts)) if len(row) > self.config.context]

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, start and end counted."""
        return [len(row) for row in self._encode(texts)]

    def pieces(self, text: str) -> list[str]:
        """What a text is cut into, without start and end, readable: ``["a", "gu", "itar"]``."""
        cleaned = self._clean(text)
        encoded = self._library.encode(cleaned, add_special_tokens=False)
        return [cleaned[begin:end] for begin, end in encoded.offsets]

    def _clean(self, text: str) -> str:
        return _canonical(text) if self.config.canonical else _clean(text)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        has_own = self._start is None
        encoded = self._library.encode_batch([self._clean(text) for text in texts], add_special_tokens=has_own)
        if has_own:
            return [list(one.ids) for one in encoded]
        return [[self._start, *one.ids, self._end] for one in encoded]  # type: ignore[list-item]


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """The tokenizer of a config; one that is not trained yet cuts words into bytes.

    Raises:
        ConfigError: where the definition of a vocabulary cannot be read.
    """
    if config.kind == "library":
        try:
            library = tokenizers.Tokenizer.from_str(config.definition)
        except Exception as error:  # the library raises nothing narrower
            raise ConfigError(
                "this is no vocabulary of the library tokenizers", where="tokenizer.definition"
            ) from error
        library.no_padding()
        library.no_truncation()
        return Tokenizer(library, config, start=None, end=None)
    return _built(config.kind, config.merges, config)


def train_merges(texts: Iterable[str], vocab_size: int) -> tuple[str, ...]:
    """The merges of a vocabulary of at most ``vocab_size`` tokens that encode these texts shortest.

    Args:
        texts: captions; the same texts give the same merges.
        vocab_size: number of tokens: 512 for bytes, 2 for start and end, the rest for merges.

    Raises:
        InputError: where there are no texts.
    """
    library = _library({}, [])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=list(_letters()),
        end_of_word_suffix=_WORD_END,
        show_progress=False,
        special_tokens=[],
    )
    cleaned = [_clean(text) for text in texts]
    if not any(cleaned):
        raise InputError("there are no texts to train a vocabulary on", expected="captions")
    library.train_from_iterator(cleaned, trainer)
    learned = json.loads(library.to_str())["model"]["merges"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in learned]
    return tuple(merges[: vocab_size - 2 * 256 - _SPECIALS])


def rarity(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[float, ...]:
    """How rare each token is in some texts, one number in [0, 1] per token; 0 for those that no text has.

    The inverse document frequency (Sparck Jones 1972), ``log(N / n)`` for a token that n of the N texts have, over
    ``log N``, so that a token of a single text gets 1.
    """
    counts = torch.zeros(tokenizer.vocab_size, dtype=torch.float64)
    for text in texts:
        counts[torch.unique(tokenizer([text], truncate=True).ids)] += 1
    total = max(len(texts), 2)
    weights = (total / counts).log() / math.log(total)
    return tuple(round(weight, 4) for weight in torch.where(counts > 0, weights, 0.0).tolist())


def _built(kind: str, merges: Sequence[str], config: TokenizerConfig) -> Tokenizer:
    pairs = _published() if kind == "clip" else tuple(_pair(merge) for merge in merges)
    letters = _letters()
    vocab: dict[str, int] = {}
    for token in (*letters, *(letter + _WORD_END for letter in letters), *(a + b for a, b in pairs)):
        vocab.setdefault(token, len(vocab))
    return Tokenizer(_library(vocab, list(pairs)), config, start=len(vocab), end=len(vocab) + 1)


def _pair(merge: str) -> tuple[str, str]:
    left, space, right = merge.partition(" ")
    if not (left and space and right) or " " in right:
        raise ConfigError(
            f"{merge!r} is no merge", where="tokenizer.merges", expected="two tokens with a space between"
        )
    return left, right


@functools.cache
def _published() -> tuple[tuple[str, str], ...]:
    """CLIP's merges, in their order."""
    packed = files("saccade").joinpath("assets", "clip_text", "merges.txt.gz").read_bytes()
    return tuple(_pair(line) for line in gzip.decompress(packed).decode().splitlines())


def _library(vocab: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, end_of_word_suffix=_WORD_END))
    library.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return library


def _canonical(text: str) -> str:
    """A text as SigLIP's vocabulary expects it: lower case, no punctuation, single spaces."""
    return " ".join(text.translate(_NO_PUNCTUATION).lower().split())


def _clean(text: str) -> str:
    """A text as CLIP's vocabulary expects it: no HTML escapes, plain letters, single spaces."""
    return " ".join(html.unescape(html.unescape(text)).translate(_LETTERS_ALIKE).split())


@functools.cache
def _letters() -> tuple[str, ...]:
    """One letter per byte: itself where it can be seen, else one from 256 on; the seen ones first."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return (*map(chr, seen), *(chr(256 + place) for place in range(len(hidden))))
