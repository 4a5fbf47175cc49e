"""The demo tokenizer."""

from __future__ import annotations

from random import Random

import pytest
from tokenizers import Tokenizer

from demo_training.questions import ask_about
from demo_training.scenes import invent
from demo_training.vocabulary import (
    PLAIN_ADDED_TOKENS,
    SPECIAL_TOKENS,
    special_id,
    train_tokenizer,
)
from inference_service.demo import MODEL_DIR


@pytest.mark.parametrize(
    "text", ["A red circle.", "图里有什么？", "naïve 🙂 zażółć", "a  b\n\n\tc", ""]
)
def test_any_text_comes_back(codec, text):
    assert codec.tokenizer.decode(codec.text(text)) == text


def test_the_shipped_tokenizer_gives_back_every_answer():
    tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    for seed in range(200):
        random = Random(seed)
        exchange = ask_about(random, invent(random, 128, 128))
        for text in (exchange.question, exchange.answer):
            assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_special_tokens_are_one_token_each_behind_the_learned_ones(codec):
    texts = (*SPECIAL_TOKENS, *PLAIN_ADDED_TOKENS)
    first = codec.tokenizer.get_vocab_size() - len(texts)

    assert [codec.text(text) for text in texts] == [[first + i] for i in range(len(texts))]


def test_digits_are_single_tokens(codec):
    assert len(codec.text("1234")) == 4


@pytest.mark.parametrize("word", ["STOP", "cat", "Zebra", "42"])
def test_a_printed_word_is_one_token_a_character(codec, word):
    assert len(codec.text(word)) == len(word)


def test_frequent_words_of_the_questions_are_single_tokens(codec):
    assert len(codec.text("What is the")) == 3


def test_training_is_repeatable():
    first, second = (train_tokenizer(exchanges=50, chinese_size=280).to_str() for _ in range(2))

    assert first == second


def test_an_absent_special_token_is_told(codec):
    with pytest.raises(ValueError, match=r"no <\|absent\|>"):
        special_id(codec.tokenizer, "<|absent|>")
