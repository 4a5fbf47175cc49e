"""Streams of tokens and text: the pieces together are the whole, however they are cut."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
import pytest

from inference_service.text.output.detokenize import Detokenizer
from inference_service.text.output.stop import StopStringFilter
from tests.support.qwen_text import token_id


VOCAB = 538
IDS = st.lists(st.integers(0, VOCAB + 2), max_size=40)
CUTS = st.lists(st.integers(1, 5), max_size=40)


def cut(whole, lengths):
    """Pieces of the lengths given, the last with all the rest; none is empty."""
    start = 0
    for length in lengths:
        yield whole[start : start + length]
        start += length
    yield whole[start:]


@given(IDS, CUTS, st.booleans())
def test_pieces_are_the_whole(tokenizer, ids, lengths, skip):
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
    pieces = [detokenizer.push(piece) for piece in cut(ids, lengths)]
    got = "".join(pieces) + detokenizer.finish()
    assert got == tokenizer.decode(ids, skip_special_tokens=skip)
    assert "\ufffd" not in got or "\ufffd".encode() in b"".join(map(tokenizer.token_bytes, ids))


@given(st.text(), CUTS)
@example("\ufffd", [1, 1, 1])
@example("👩‍👩‍👧", [1] * 20)
def test_text_comes_back(tokenizer, text, lengths):
    import unicodedata

    detokenizer = Detokenizer(tokenizer, skip_special_tokens=True)
    ids = tokenizer.encode_plain(text)
    pieces = [detokenizer.push(piece) for piece in cut(ids, lengths)]
    assert "".join(pieces) + detokenizer.finish() == unicodedata.normalize("NFC", text)


def test_no_half_character(tokenizer):
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=True)
    ids = tokenizer.encode_plain("\U0001f9ff")
    assert len(ids) > 1
    assert [detokenizer.push([i]) for i in ids] == [""] * (len(ids) - 1) + ["\U0001f9ff"]
    assert detokenizer.push(ids[:-1]) == ""
    assert detokenizer.finish() == ""


def test_special_tokens(tokenizer):
    end = token_id("<|im_end|>")
    assert Detokenizer(tokenizer, skip_special_tokens=True).push([end]) == ""
    assert Detokenizer(tokenizer, skip_special_tokens=False).push([end]) == "<|im_end|>"
    think = token_id("<think>")
    assert Detokenizer(tokenizer, skip_special_tokens=True).push([think]) == "<think>"


def stopped(strings, pieces, *, include=False):
    """(text passed on, stop string found)."""
    stops = StopStringFilter(strings, include=include)
    text, found = "", None
    for piece in pieces:
        emit, matched = stops.push(piece)
        text += emit
        found = found or matched
    return text + stops.finish(), found


ALPHABET = st.text(alphabet="ab\n", max_size=30)
STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=4)


@given(STOPS, ALPHABET, CUTS, st.booleans())
@example(["ab", "b"], "aab", [1, 1], False)
@example(["abab"], "aababab", [2, 1, 3], True)
def test_stop_strings_do_not_depend_on_cuts(strings, text, lengths, include):
    text_out, found = stopped(strings, cut(text, lengths), include=include)
    ends = [(at + len(one), at, one) for one in strings if (at := text.find(one)) >= 0]
    if not ends:
        assert (text_out, found) == (text, None)
        return
    end, start, wanted = min(ends)
    assert (text_out, found) == (text[: end if include else start], wanted)


def test_only_possible_beginnings_are_held_back():
    stops = StopStringFilter(["END", "\n\n"], include=False)
    assert stops.push("abc") == ("abc", None)
    assert stops.push("dE") == ("d", None)
    assert stops.push("N") == ("", None)
    assert stops.push("X\n") == ("ENX", None)
    assert stops.finish() == "\n"


def test_behind_the_stop_string_all_is_swallowed():
    stops = StopStringFilter(["."], include=True)
    assert stops.push("a.b") == ("a.", ".")
    assert stops.push("c") == ("", None)
    assert stops.finish() == ""


def test_empty_stop_string():
    with pytest.raises(ValueError, match="empty"):
        StopStringFilter(["a", ""], include=False)
    assert StopStringFilter([], include=False).push("abc") == ("abc", None)
