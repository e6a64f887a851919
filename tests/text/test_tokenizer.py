"""Tokens: the published vocabulary against reference tokens, a trained one by hand."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors

from saccade.errors import ConfigError, InputError
from saccade.text.tokenizer import Tokenizer, TokenizerConfig, build_tokenizer, rarity, train_merges

# Made with the tokenizer of https://github.com/openai/CLIP (MIT, Copyright (c) 2021 OpenAI).
VECTORS = json.loads(Path(__file__).with_name("token_vectors.json").read_text(encoding="utf-8"))
CAPTIONS = ["a red square", "a blue circle", "the red circle above a green square"] * 3


@pytest.fixture(scope="module")
def published() -> Tokenizer:
    return build_tokenizer(TokenizerConfig())


def trained(vocab_size: int = 560, **options: object) -> Tokenizer:
    merges = train_merges(CAPTIONS, vocab_size)
    return build_tokenizer(TokenizerConfig(kind="trained", vocab_size=vocab_size, merges=merges, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["text"] for vector in VECTORS])
def test_published_vocabulary_gives_the_reference_tokens(published: Tokenizer, vector: dict) -> None:
    tokens = published([vector["text"]])
    assert tokens.ids.tolist() == [vector["ids"]]
    assert tokens.ends.tolist() == [len(vector["ids"]) - 1]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("it’s “fine”", 'it\'s "fine"'),
        ("ＷＩＤＥ letters", "wide letters"),
        ("ﬁne", "fine"),
        ("a &amp;amp; b", "a & b"),
        ("  many\n\tspaces ", "many spaces"),
        ("Cafe\u0301", "café"),
    ],
)
def test_texts_that_look_the_same_are_the_same(published: Tokenizer, text: str, plain: str) -> None:
    assert published([text]).ids.tolist() == published([plain]).ids.tolist()


def test_vocabulary_has_its_size(published: Tokenizer) -> None:
    assert published.vocab_size == 49408
    ids = published(["anything 123 ✓"]).ids
    assert ids[0, 0] == 49406
    assert ids.max() == 49407


def test_texts_are_filled_up_to_the_longest_only(published: Tokenizer) -> None:
    tokens = published(["a cat", "a photo of a cat"])
    assert tokens.ids.shape == (2, 7)
    assert tokens.ends.tolist() == [3, 6]
    assert tokens.ids[0, 4:].tolist() == [0, 0, 0]
    assert published(["a cat"], fills=True).ids.shape == (1, 77)
    assert published([]).ids.shape[0] == 0


def test_too_long_texts_are_told_and_cut_only_when_asked() -> None:
    tokenizer = build_tokenizer(TokenizerConfig(context=6))
    texts = ["a cat", "one two three four five six"]
    assert tokenizer.lengths(texts) == [4, 8]
    assert tokenizer.too_long(texts) == [1]
    with pytest.raises(
        InputError, match=r"captions.csv: the text 'one two three four five six' has 8 tokens; expected at most 6"
    ):
        tokenizer(texts, where="captions.csv")
    cut = tokenizer(texts, truncate=True)
    whole = build_tokenizer(TokenizerConfig())(texts).ids[1].tolist()
    assert cut.ids[1].tolist() == [*whole[:5], 49407]
    assert cut.ends.tolist() == [3, 5]


def test_trained_vocabulary_merges_what_is_often_together() -> None:
    tokenizer = trained()
    assert tokenizer.pieces("a red circle") == ["a", "red", "circle"]
    assert tokenizer.lengths(["a red circle"]) == [5]
    # What was never seen is read byte by byte: four bytes of an emoji, each a token.
    assert tokenizer.lengths(["😀"]) == [2 + 4]
    ids = tokenizer(["a red circle", "zebra"]).ids
    assert int(ids.max()) == tokenizer.vocab_size - 1


def test_training_is_deterministic_and_keeps_to_the_size() -> None:
    assert train_merges(CAPTIONS, 530) == train_merges(list(CAPTIONS), 530)
    assert len(train_merges(CAPTIONS, 530)) == 530 - 514
    assert trained(530).vocab_size == 530
    assert train_merges(CAPTIONS, 530) == train_merges(CAPTIONS, 560)[: 530 - 514]
    assert len(train_merges(CAPTIONS, 10_000)) < 100  # no more than there is to merge
    with pytest.raises(InputError, match="no texts to train a vocabulary on"):
        train_merges([" "], 600)


def test_before_training_texts_are_bytes() -> None:
    tokenizer = build_tokenizer(TokenizerConfig(kind="trained", vocab_size=600))
    assert tokenizer.vocab_size == 514
    assert tokenizer.lengths(["red"]) == [5]


def test_tokenizers_can_be_copied_and_sent_to_other_processes() -> None:
    tokenizer = trained()
    expected = tokenizer(CAPTIONS).ids
    for again in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert torch.equal(again(CAPTIONS).ids, expected)


def test_library_vocabulary_brings_its_own_end() -> None:
    library = tokenizers.Tokenizer(models.WordLevel({"</s>": 0, "<unk>": 1, "red": 2, "square": 3}, "<unk>"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    config = TokenizerConfig(
        kind="library", definition=library.to_str(), context=6, pads_all=True, pad=1, canonical=True, vocab_size=4
    )
    tokens = build_tokenizer(config)(["Red, SQUARE!"])
    assert tokens.ids.tolist() == [[2, 3, 0, 1, 1, 1]]
    assert tokens.ends.tolist() == [2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 2}, "context is 2; expected at least 3"),
        ({"vocab_size": 600}, "the published vocabulary has 49408 tokens, not 600"),
        ({"kind": "trained", "vocab_size": 500}, "vocab_size is 500; expected at least 514"),
        ({"merges": ("a b",)}, "only a trained vocabulary has merges of its own"),
        ({"kind": "library"}, "a vocabulary of kind 'library' and a definition belong together"),
    ],
)
def test_wrong_configs_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TokenizerConfig(**options)


def test_damaged_vocabularies_are_refused() -> None:
    with pytest.raises(ConfigError, match="'ab' is no merge"):
        build_tokenizer(TokenizerConfig(kind="trained", vocab_size=600, merges=("ab",)))
    with pytest.raises(ConfigError, match="no vocabulary of the library tokenizers"):
        build_tokenizer(TokenizerConfig(kind="library", definition="{}"))


def test_rarity_is_the_inverse_document_frequency() -> None:
    texts = ["red dot", "red cat", "red red sun", "blue dot"]
    config = TokenizerConfig(kind="trained", context=24, vocab_size=600, merges=train_merges(texts, 600))
    tokenizer = build_tokenizer(config)
    weights = rarity(tokenizer, texts)
    assert len(weights) == tokenizer.vocab_size

    def weight(word: str) -> float:
        ids = tokenizer([word]).ids[0]
        assert len(ids) == 3  # one token between start and end
        return weights[int(ids[1])]

    assert weight("sun") == pytest.approx(1.0)  # one of four texts: log 4 / log 4
    assert weight("dot") == pytest.approx(0.5)  # two of four
    assert weight("red") == pytest.approx(0.2075, abs=1e-4)  # three of four, twice in one of them: log(4 / 3) / log 4
    start, end = tokenizer(["sun"]).ids[0, [0, 2]].tolist()
    assert weights[start] == weights[end] == 0.0  # every text has them
    assert weights[int(tokenizer(["z"]).ids[0, 1])] == 0.0  # no text has it
