"""What the engine is told of allowed tokens and bad words."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
import pytest

from inference_service.backend.token_lists import MAX_BAD_TOKENS, NO_LISTS, token_lists
from inference_service.demo import MODEL_DIR
from inference_service.errors import InvalidArgumentError
from inference_service.sampling import SamplingOptions
from inference_service.text.tokenizer_json import JsonTokenizer


TOKENIZER = JsonTokenizer.from_dir(MODEL_DIR)
VOCAB_SIZE = 1280


def lists_of(*bad_words: str, allowed: tuple[int, ...] = ()):
    options = SamplingOptions(bad_words=bad_words, allowed_token_ids=allowed)
    return token_lists(options, TOKENIZER, VOCAB_SIZE)


def test_nothing_asked_is_nothing() -> None:
    assert lists_of() == token_lists(SamplingOptions(), TOKENIZER, VOCAB_SIZE) == NO_LISTS


@given(
    st.integers(1, 100).flatmap(
        lambda size: st.tuples(st.just(size), st.sets(st.integers(0, size - 1), min_size=1))
    )
)
def test_a_bit_for_each_allowed_token(case: tuple[int, set[int]]) -> None:
    size, allowed = case
    options = SamplingOptions(allowed_token_ids=(*allowed, *allowed))
    bits = token_lists(options, TOKENIZER, size).allowed
    assert len(bits) == 4 * -(-size // 32)
    assert int.from_bytes(bits, "little") == sum(1 << token for token in allowed)


@pytest.mark.parametrize(
    "word", ["red", "zyxwv", "red circle", "猫", "\n", " ", "<|im_end|>", "<think>"]
)
def test_a_word_is_excluded_at_the_beginning_and_behind_another(word: str) -> None:
    found = lists_of(word)
    every = {*((token,) for token in found.bad_tokens), *found.bad_sequences}
    for written in (word, f" {word.strip(' ')}" if word.strip(" ") else word):
        tokens = tuple(TOKENIZER.encode(written))
        assert any(
            tokens[start:end] in every
            for start in range(len(tokens))
            for end in range(start + 1, len(tokens) + 1)
        )
    assert lists_of(f" {word}" if word.strip(" ") else word) == found


def test_a_sequence_with_a_token_that_is_never_sampled_is_none() -> None:
    single, *_ = TOKENIZER.encode("r")
    longer = TOKENIZER.encode("zyxr")
    assert longer[-1] == single
    found = lists_of("r", "zyxr", "zyx")
    assert single in found.bad_tokens
    assert not any(single in sequence for sequence in found.bad_sequences)
    assert tuple(TOKENIZER.encode("zyx")) in found.bad_sequences
    assert all(len(sequence) > 1 for sequence in found.bad_sequences)


def test_a_special_token_is_one() -> None:
    assert lists_of("<think>").bad_tokens == (TOKENIZER.added_tokens["<think>"],)


def test_no_token_is_left() -> None:
    allowed = tuple(TOKENIZER.encode("r"))
    with pytest.raises(InvalidArgumentError, match="every token of allowed_token_ids") as caught:
        lists_of("r", allowed=allowed)
    assert caught.value.field == "spec.sampling.bad_words"
    assert lists_of("r", allowed=(*allowed, 5)).bad_tokens


def test_words_of_too_many_tokens_are_refused() -> None:
    words = tuple(f"{number} " * 40 for number in range(200))
    with pytest.raises(InvalidArgumentError, match=f"but at most {MAX_BAD_TOKENS} are") as refused:
        lists_of(*words)
    assert refused.value.field == "spec.sampling.bad_words"
