"""The lower bound of a text's tokens never exceeds what the tokenizer makes of it."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from inference_service.demo import MODEL_DIR
from inference_service.text.bounds import TokenBound
from inference_service.text.tokenizer_json import JsonTokenizer


DEMO = JsonTokenizer.from_dir(MODEL_DIR)


def _bytes_with_words(*words: str) -> JsonTokenizer:
    """One token for each byte, and some words as tokens; normalised to NFC."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: i for i, character in enumerate(alphabet)}
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                vocabulary[word[:end]] = len(vocabulary)
                merges.append((word[: end - 1], word[end - 1]))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return JsonTokenizer(tokenizer.to_str())


TOKENIZERS = [DEMO, _bytes_with_words("aaaa", "--------", "hello")]
HARD = st.text(
    alphabet=st.sampled_from(
        "aAhelo1 -\n\t\u0301\u0323é\u1f82\u212b\u2126\u03b1\u0313\u0300\u0345한\u1112\u1161\u11ab中😀"
    )
)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@given(text=HARD | st.text())
@example("\u2126\u0313\u0300\u0345" * 50)
@example("e\u0301" * 50)
@example("\u1112\u1161\u11ab" * 50)
@example("a" * 1000)
@example("-" * 1000)
@example(" " * 1000)
def test_no_text_has_fewer_tokens(tokenizer: JsonTokenizer, text: str) -> None:
    bound = TokenBound(tokenizer.texts(special=False)).min_tokens(text)
    assert bound <= len(tokenizer.encode_plain(text))


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@given(text=st.lists(st.sampled_from([*DEMO.special_tokens, "a", " ", "\n"])).map("".join))
def test_no_text_with_special_tokens_has_fewer(tokenizer: JsonTokenizer, text: str) -> None:
    bound = TokenBound(tokenizer.texts(special=True)).min_tokens(text)
    assert bound <= len(tokenizer.encode(text))


def test_the_bound_is_of_use() -> None:
    bound = TokenBound(DEMO.texts(special=False))
    assert bound.min_tokens("The quick brown fox. " * 1000) > 500
