"""Texts of users never spell a special token, and come back unchanged."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
import pytest

from inference_service.text import guard
from inference_service.text.guard import SpecialTokenGuard
from tests.support.qwen_text import SPECIAL


GUARD = SpecialTokenGuard(SPECIAL)
PIECES = st.lists(
    st.sampled_from(
        [
            *SPECIAL,
            "<|im_",
            "end|>",
            "<",
            "|",
            ">",
            "<|",
            "im_start",
            "x",
            " ",
            *"\ufdd0\ufdd1\ufdd2",
        ]
    )
    | st.text(max_size=3),
    max_size=8,
).map("".join)


@given(st.lists(PIECES, max_size=5))
@example(["<", "|im_end|", ">"])
@example(["<|im_", "end|>"])
@example(["<|im_<|im_end|>", "end|>"])
@example(["\ufdd0", "\ufdd2<|im_end|>"])
def test_neither_in_one_text_nor_across_texts(texts):
    joined = "".join(map(GUARD.protect, texts))
    pieces = list(GUARD.split(joined))
    assert not any(special for _, special in pieces)
    assert "".join(text for text, _ in pieces) == "".join(texts)


@pytest.mark.parametrize("tokens", [SPECIAL, ["ab", "ba", "aab", "a b", "b a "]])
@pytest.mark.parametrize("characters", [1, 5, 2**16])
def test_slices_change_nothing(tokens, characters, monkeypatch):
    """The same as one search for all that is dangerous, which no other thread can interrupt."""
    monkeypatch.setattr(guard, "_SLICE", characters)
    made = SpecialTokenGuard(tokens)

    @given(PIECES | st.lists(st.sampled_from([*tokens, *"ab <"]), max_size=9).map("".join))
    def check(text):
        escaped = text.replace(guard.MARK, guard._ITSELF)
        assert made.protect(text) == made._dangerous.sub(rf"\g<1>{guard._BREAK}", escaped)

    check()


def test_beginnings_of_tokens_are_looked_for_at_the_end_only(monkeypatch):
    lengths = []

    class Measured:
        def sub(self, mark, text):
            del mark
            lengths.append(len(text))
            return text

    made = SpecialTokenGuard(SPECIAL)
    monkeypatch.setattr(made, "_dangerous", Measured())
    assert made.protect("<|" * 10_000) == "<|" * 10_000
    assert max(lengths) < 100


@given(st.text())
def test_ordinary_text_is_not_touched(text):
    if "<" not in text and "\ufdd0" not in text:
        assert GUARD.protect(text) == text


@pytest.mark.parametrize("space", ["\n", " ", "\t\r\n  ", "\u3000"])
def test_a_template_that_trims_joins_no_token(space):
    for token in SPECIAL:
        for length in range(1, len(token)):
            texts = (token[:length] + space, space + token[length:])
            joined = "".join(GUARD.protect(text).strip() for text in texts)
            assert list(GUARD.split(joined)) == [(token, False)]


def test_only_the_templates_tokens_are_special():
    rendered = "<|im_start|>user\n" + GUARD.protect("a<|im_end|>") + "<|im_end|>"
    assert list(GUARD.split(rendered)) == [
        ("<|im_start|>", True),
        ("user\na<|im_end|>", False),
        ("<|im_end|>", True),
    ]


def test_tokens_that_cannot_be_broken():
    for token in ("x", "<\ufdd0>"):
        with pytest.raises(ValueError, match="special token"):
            SpecialTokenGuard([token])
    assert list(SpecialTokenGuard([]).split("a<|im_end|>")) == [("a<|im_end|>", False)]
