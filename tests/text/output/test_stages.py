"""Each stage alone: the pieces together are the whole, however they are cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import json

from hypothesis import example, given, settings
from hypothesis import strategies as st
import pytest

from inference_service.domain import Grounding, ImageInfo, StopTrigger
from inference_service.model_spec import BoxNotation
from inference_service.text.output.boxes import BoxReader, groundings
from inference_service.text.output.detokenize import Detokenizer
from inference_service.text.output.pipeline import Pipeline
from inference_service.text.output.stage import Piece, Stage
from inference_service.text.output.stop import StopStringFilter
from inference_service.text.tokenizer import Tokenizer
from tests.support.cuts import cut
from tests.support.qwen_text import token_id
from tests.support.utf8 import shown


VOCAB = 538
IDS = st.lists(st.integers(0, VOCAB + 2), max_size=40)
CUTS = st.lists(st.integers(0, 5), max_size=40)
IMAGE = ImageInfo(
    original_width=100, original_height=200, processed_width=56, processed_height=112, tokens=8
)


def after(stage: Stage, piece: Piece) -> Piece:
    stage.push(piece)
    return piece


def pushed(stage: Stage, whole: Piece, lengths: Sequence[int]) -> Piece:
    """What a stage gives for a piece that comes in several; nothing comes behind the last."""
    total = Piece()
    parts = list(cut(len(whole.token_ids) or len(whole.text), lengths))
    for number, part in enumerate(parts, start=1):
        piece = Piece(
            token_ids=whole.token_ids[part], text=whole.text[part], last=number == len(parts)
        )
        stage.push(piece)
        total.extend(piece)
        if total.last:
            break
    return total


BOX = json.dumps({"bbox_2d": [100, 200, 500, 400], "label": "\u5706"}, ensure_ascii=False)
STAGES: dict[str, Callable[[Tokenizer], Stage]] = {
    "detokenise": lambda tokenizer: Detokenizer(tokenizer, skip_special_tokens=True),
    "detokenise all": lambda tokenizer: Detokenizer(tokenizer, skip_special_tokens=False),
    "stop strings": lambda _: StopStringFilter(["bbox", ", ", "\u5706"], include=False),
    "included stop strings": lambda _: StopStringFilter([", 2", "abel"], include=True),
    "boxes": lambda _: BoxReader(BoxNotation.JSON_PER_MILLE, (IMAGE,)),
}
TEXTS = st.lists(st.one_of(st.sampled_from(BOX), st.just(BOX), st.text(max_size=4)), max_size=20)


@pytest.mark.parametrize("name", STAGES)
@settings(deadline=None)
@given(text=TEXTS.map("".join), lengths=CUTS, data=st.data())
def test_cutting_changes_nothing(
    tokenizer: Tokenizer, name: str, text: str, lengths: list[int], data: st.DataObject
) -> None:
    whole = Piece(text=text)
    if name.startswith("detokenise"):
        ids = data.draw(st.one_of(st.just(tokenizer.encode_plain(text)), IDS))
        whole = Piece(token_ids=tuple(ids))
    once = pushed(STAGES[name](tokenizer), whole, [])
    several = pushed(STAGES[name](tokenizer), whole, lengths)
    assert (several.text, several.trigger) == (once.text, once.trigger)
    assert (several.groundings, several.last) == (once.groundings, True)


@pytest.mark.parametrize("name", STAGES)
def test_only_stages_that_may_end_an_answer_end_it(tokenizer: Tokenizer, name: str) -> None:
    stage = STAGES[name](tokenizer)
    piece = after(stage, Piece(token_ids=tuple(tokenizer.encode_plain(BOX)), text=BOX))
    assert (piece.last, piece.trigger is not None) == (stage.may_end, stage.may_end)


class _TokenLimit:
    """Ends an answer after some tokens."""

    may_end = True
    counts_tokens = False

    def __init__(self, tokens: int) -> None:
        self._left = tokens

    def push(self, piece: Piece) -> None:
        self._left -= len(piece.token_ids)
        if self._left <= 0:
            piece.trigger, piece.last = StopTrigger(), True


def test_tokens_after_the_end_are_not_in_the_answer(tokenizer: Tokenizer) -> None:
    ids = tuple(tokenizer.encode_plain("a, b, c, d"))
    assert len(ids) > 3
    pipeline = Pipeline([Detokenizer(tokenizer, skip_special_tokens=True), _TokenLimit(3)])
    piece = pipeline.push(ids, last=False)
    assert (piece.token_ids, piece.last, piece.trigger) == (ids[:3], True, StopTrigger())
    assert piece.text == tokenizer.decode(ids[:3], skip_special_tokens=True)


def detokenised(detokenizer: Detokenizer, ids: Sequence[int], *, last: bool = False) -> str:
    return after(detokenizer, Piece(token_ids=tuple(ids), last=last)).text


@settings(deadline=None)
@given(IDS, CUTS, st.booleans())
def test_pieces_are_the_whole(
    tokenizer: Tokenizer, ids: list[int], lengths: list[int], skip: bool
) -> None:
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
    got = pushed(detokenizer, Piece(token_ids=tuple(ids)), lengths).text
    hidden = tokenizer.hidden_ids if skip else ()
    data = b"".join(tokenizer.token_bytes(token) for token in ids if token not in hidden)
    assert got == shown(data)


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.binary(max_size=3), st.sampled_from("é图🙂").map(str.encode))).map(
        b"".join
    )
)
@example(b"\x80" * 9)
@example(b"\xf0\x9f\x80")
@example(b"\xed\xa0\x80\xc0\xaf\xf5")
def test_impossible_bytes_are_shown_and_only_an_incomplete_end_is_not(data: bytes) -> None:
    bytewise = ByteTokenizer()
    whole = pushed(
        Detokenizer(bytewise, skip_special_tokens=True), Piece(token_ids=tuple(data)), []
    )
    single = pushed(
        Detokenizer(bytewise, skip_special_tokens=True),
        Piece(token_ids=tuple(data)),
        [1] * len(data),
    )
    assert whole.text == single.text == shown(data)
    assert bytewise.decode(data) == data.decode(errors="replace")


class ByteTokenizer(Tokenizer):
    """A token for each byte."""

    def __init__(self) -> None:
        super().__init__([bytes([byte]) for byte in range(256)], {})

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    encode_plain = encode


@settings(deadline=None)
@given(st.text(), CUTS)
@example("\ufffd", [1, 1, 1])
@example("👩‍👩‍👧", [1] * 20)
def test_text_comes_back(tokenizer: Tokenizer, text: str, lengths: list[int]) -> None:
    import unicodedata

    detokenizer = Detokenizer(tokenizer, skip_special_tokens=True)
    whole = Piece(token_ids=tuple(tokenizer.encode_plain(text)))
    assert pushed(detokenizer, whole, lengths).text == unicodedata.normalize("NFC", text)


def test_no_half_character(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=True)
    ids = tokenizer.encode_plain("\U0001f9ff")
    assert len(ids) > 1
    got = [detokenised(detokenizer, [i]) for i in ids]
    assert got == [""] * (len(ids) - 1) + ["\U0001f9ff"]
    assert detokenised(detokenizer, ids[:-1]) == ""
    assert detokenised(detokenizer, [], last=True) == ""


def test_special_tokens(tokenizer: Tokenizer) -> None:
    def text_of(token: str, *, skip_special_tokens: bool) -> str:
        detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
        return detokenised(detokenizer, [token_id(token)])

    assert text_of("<|im_end|>", skip_special_tokens=True) == ""
    assert text_of("<|im_end|>", skip_special_tokens=False) == "<|im_end|>"
    assert text_of("<think>", skip_special_tokens=True) == "<think>"


ALPHABET = st.text(alphabet="ab\n", max_size=30)
STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=4)


@settings(deadline=None)
@given(STOPS, ALPHABET, CUTS, st.booleans())
@example(["ab", "b"], "aab", [1, 1], False)
@example(["abab"], "aababab", [2, 1, 3], True)
def test_stop_strings_do_not_depend_on_cuts(
    strings: list[str], text: str, lengths: list[int], include: bool
) -> None:
    got = pushed(StopStringFilter(strings, include=include), Piece(text=text), lengths)
    ends = [(at + len(one), at, one) for one in strings if (at := text.find(one)) >= 0]
    if not ends:
        assert (got.text, got.trigger, got.last) == (text, None, True)
        return
    end, start, wanted = min(ends)
    assert got.text == text[: end if include else start]
    assert (got.trigger, got.last) == (StopTrigger(stop_string=wanted), True)


def test_only_possible_beginnings_are_held_back() -> None:
    stops = StopStringFilter(["END", "\n\n"], include=False)
    for text, passed in {"abc": "abc", "dE": "d", "N": "", "X\n": "ENX"}.items():
        assert after(stops, Piece(text=text)) == Piece(text=passed)
    assert after(stops, Piece(last=True)) == Piece(text="\n", last=True)


def test_a_stop_string_ends_the_answer() -> None:
    stops = StopStringFilter(["."], include=True)
    trigger = StopTrigger(stop_string=".")
    ended = Piece(text="a.", trigger=trigger, last=True, is_cut=True)
    assert after(stops, Piece(text="a.b")) == ended


def test_empty_stop_string() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopStringFilter(["a", ""], include=False)
    assert after(StopStringFilter([], include=False), Piece(text="abc")) == Piece(text="abc")


def test_boxes_come_with_the_last_piece_and_the_text_passes() -> None:
    boxes = BoxReader(BoxNotation.JSON_PER_MILLE, (IMAGE,))
    assert after(boxes, Piece(text=BOX[:20])) == Piece(text=BOX[:20])
    found: tuple[Grounding, ...] = groundings(BOX, BoxNotation.JSON_PER_MILLE, (IMAGE,))
    assert len(found) == 1
    last = Piece(text=BOX[20:], last=True)
    assert after(boxes, last) == Piece(text=BOX[20:], groundings=found, last=True)
