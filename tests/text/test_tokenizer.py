"""Tokens against transformers' own; special tokens never from plain text."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
import pytest
from transformers import PreTrainedTokenizerFast

from inference_service.text.tokenizer_json import JsonTokenizer, _slices
from tests.support.qwen_text import ORDINARY, SPECIAL, token_id, tokenizer_json, write_text_files


TEXTS = st.text(max_size=60) | st.lists(
    st.sampled_from(
        [
            *SPECIAL,
            *ORDINARY,
            "<|",
            "|>",
            "im_end",
            " ",
            "\n\n",
            "你好",
            "é",
            "e\u0301",
            "😀",
            "12",
            "'s",
        ]
    ),
    max_size=12,
).map("".join)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(
        write_text_files(tmp_path_factory.mktemp("oracle"), "")
    )


@given(TEXTS)
def test_encodes_as_transformers(tokenizer, oracle, text):
    assert tokenizer.encode(text) == oracle.encode(text, add_special_tokens=False)
    assert tokenizer.encode_plain(text) == oracle.encode(
        text, add_special_tokens=False, split_special_tokens=True
    ) or any(word in text for word in ORDINARY)


@given(TEXTS)
def test_plain_text_has_no_special_token_and_comes_back(tokenizer, text):
    import unicodedata

    ids = tokenizer.encode_plain(text)
    assert not tokenizer.special_ids.intersection(ids)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("token", SPECIAL)
def test_every_special_token(tokenizer, token):
    assert tokenizer.encode(token) == [token_id(token)]
    assert len(tokenizer.encode_plain(token)) > 1
    assert tokenizer.decode([token_id(token)]) == ""
    assert tokenizer.decode([token_id(token)], skip_special_tokens=False) == token
    assert tokenizer.token_text(token_id(token)) == token


@pytest.mark.parametrize("token", ORDINARY)
def test_ordinary_added_tokens(tokenizer, token):
    assert tokenizer.encode_plain(f"a{token}b")[1] == token_id(token)
    assert tokenizer.decode([token_id(token)]) == token


def test_bytes_of_all_tokens(tokenizer, oracle):
    assert tokenizer.vocab_size == len(oracle)
    for index in range(tokenizer.vocab_size):
        assert tokenizer.token_text(index) == oracle.decode([index])
    singles = {tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)}
    assert {bytes([value]) for value in range(256)} <= singles
    for index in (-1, tokenizer.vocab_size, 10**9):
        assert tokenizer.token_bytes(index) == b""
        assert tokenizer.token_text(index) == ""


def test_unsuitable_files(tmp_path):
    other = json.loads(tokenizer_json()) | {
        "decoder": {"type": "WordPiece", "prefix": "#", "cleanup": False}
    }
    for text in ("", "{}", json.dumps(other)):
        with pytest.raises(ValueError, match=r"tokenizer\.json"):
            JsonTokenizer(text)
    with pytest.raises(OSError, match=r"vocab\.json"):
        JsonTokenizer.from_dir(tmp_path)


@given(
    st.lists(
        st.sampled_from(
            ["words", " in", "\n", "Line", "中文", "，", "。", "12", "e\u0301", "'s", " "]
        )
    )
)
def test_a_long_text_is_encoded_in_slices_with_the_same_tokens(tokenizer, parts):
    text = "".join(parts) * 3
    whole = tokenizer.encode_plain(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "_slice_characters", 1)
        assert tokenizer.encode_plain(text) == whole
        assert tokenizer.encode(text) == whole


def test_a_text_is_cut_between_words_only(tokenizer):
    assert tokenizer._slice_characters
    text = "some words and\nlines. " * 10
    pieces = list(_slices(text, 20))
    assert "".join(pieces) == text
    assert len(pieces) > 5
    assert all(20 <= len(piece) < 40 for piece in pieces[:-1])
    assert list(_slices("x" * 100, 20)) == ["x" * 100]
