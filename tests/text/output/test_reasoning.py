"""Reasoning at the beginning of answers: where it ends, and that no cut changes it."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from inference_service.text.output.detokenize import Detokenizer
from inference_service.text.output.pipeline import Pipeline
from inference_service.text.output.reasoning import ReasoningSplitter, ReasoningStart
from inference_service.text.output.stage import Piece
from inference_service.text.output.stop import StopStringFilter
from inference_service.text.tokenizer import Tokenizer
from tests.support.cuts import cut


TEXT, CLOSED = ReasoningStart.TEXT, ReasoningStart.CLOSED
OPEN, OPTIONAL = ReasoningStart.OPEN, ReasoningStart.OPTIONAL
CALL = "<tool_call>\n<function=now>"
CASES: dict[str, tuple[ReasoningStart, str, str, str]] = {
    "opened by the prompt": (OPEN, "So.\nYes.\n</think>\n\nIt is.", "So.\nYes.", "It is."),
    "opened by the prompt and again": (OPEN, "\n\nSo.</think>It is.", "So.", "It is."),
    "not closed": (OPEN, "So.\n\n", "So.\n\n", ""),
    "closed at once": (OPEN, "</think>\n\nIt is.", "", "It is."),
    "closed twice": (OPEN, "So.\n</think>\n\n</think>\n\nIt is.", "So.", "It is."),
    "closed later again": (OPEN, "So.</think>a</think>b", "So.", "a</think>b"),
    "only newlines of the format are left out": (OPEN, "So.</think>\n\n\n It", "So.", "\n It"),
    "half a tag": (OPEN, "So.</thin", "So.</thin", ""),
    "opened by the model": (OPTIONAL, " \n<think>\nSo.\n</think>\n\nIt is.", "So.", "It is."),
    "not opened": (OPTIONAL, "\nIt is <think>.", "", "\nIt is <think>."),
    "begun to open": (OPTIONAL, "<thin", "", "<thin"),
    "white space": (OPTIONAL, " \n", "", " \n"),
    "closed by the prompt": (CLOSED, "It is.\n", "", "It is.\n"),
    "closed by the prompt and again": (CLOSED, "\n</think>\n\nIt is.", "", "It is."),
    "a call in the reasoning": (OPEN, f"So.\n{CALL}\n", "So.", f"{CALL}\n"),
}


def split(
    start: ReasoningStart, text: str, lengths: Sequence[int], *, ended_by: Sequence[str] = (CALL,)
) -> tuple[str, str]:
    splitter = ReasoningSplitter(start, None, ended_by)
    total = Piece()
    parts = list(cut(len(text), lengths))
    for number, part in enumerate(parts, start=1):
        piece = Piece(text=text[part], last=number == len(parts))
        splitter.push(piece)
        total.extend(piece)
    return total.reasoning, total.text


@pytest.mark.parametrize("name", CASES)
def test_reasoning_is_separated(name: str) -> None:
    start, answer, reasoning, text = CASES[name]
    for lengths in ([], [1] * len(answer), [4] * len(answer)):
        assert split(start, answer, lengths) == (reasoning, text)


PIECES = st.lists(
    st.one_of(
        st.sampled_from(["<think>", "</think>", "\n", "\n\n", " ", CALL, "</thi", "<tool_call>"]),
        st.text(max_size=3),
    ),
    max_size=10,
).map("".join)


@pytest.mark.parametrize("start", [CLOSED, OPEN, OPTIONAL])
@settings(deadline=None, max_examples=200)
@given(answer=PIECES, lengths=st.lists(st.integers(0, 6), max_size=40))
def test_cutting_changes_nothing(start: ReasoningStart, answer: str, lengths: list[int]) -> None:
    once = split(start, answer, [])
    assert split(start, answer, lengths) == once
    kept = "".join(once)
    for tag in ("<think>", "</think>"):
        answer, kept = answer.replace(tag, ""), kept.replace(tag, "")
    assert "".join(kept.split()) == "".join(answer.split())


def tokens_of(tokenizer: Tokenizer, answer: Sequence[str]) -> list[tuple[int, ...]]:
    """The tokens of each text; `</think>` in quotes is spelled with several."""
    spelled = {"'</think>'": [*tokenizer.encode("'</th"), *tokenizer.encode("ink>'")]}
    return [tuple(spelled.get(text, tokenizer.encode(text))) for text in answer]


@pytest.mark.parametrize("stops", [(), ("\n\n\n",), ("</think>!", "ink>\n")])
def test_the_token_ends_the_reasoning_and_not_its_spelling(
    tokenizer: Tokenizer, stops: tuple[str, ...]
) -> None:
    close_id = tokenizer.added_tokens.get("</think>")
    assert close_id is not None
    reasoning = tokens_of(tokenizer, ["I write ", "'</think>'", " first.", "\n", "</think>"])
    text = tokens_of(tokenizer, ["\n\n", "Yes ", "'</think>'"])
    ids = tuple(token for part in (*reasoning, *text) for token in part)
    for lengths in ([], [1] * len(ids), [3] * len(ids)):
        pipeline = Pipeline(
            [
                Detokenizer(tokenizer, skip_special_tokens=True, marked=close_id),
                StopStringFilter(stops, include=False),
                ReasoningSplitter(OPEN, close_id),
            ]
        )
        total = Piece()
        parts = list(cut(len(ids), lengths))
        for number, part in enumerate(parts, start=1):
            total.extend(pipeline.push(ids[part], last=number == len(parts)))
            if total.last:
                break
        assert total.reasoning == "I write '</think>' first."
        assert total.reasoning_tokens == sum(map(len, reasoning))
        if "ink>\n" in stops:
            assert (total.text, total.trigger is not None) == ("", True)
        else:
            assert total.text == "Yes '</think>'"
