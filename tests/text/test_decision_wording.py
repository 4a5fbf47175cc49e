"""How questions are written: each version of the wording stays as it is, and labels belong to one option."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
import pytest

from inference_service.decisions import Option, Question, QuestionKind
from inference_service.domain import ImagePart, TextPart
from inference_service.text.decisions.wording import (
    PROMPT_FORMATS,
    WrittenQuestion,
    _as_question,
    letter_codes,
    plain,
)


def question(kind: QuestionKind, *options: Any, text: str = "Which?") -> Question:
    made = [option if isinstance(option, Option) else Option(value=option) for option in options]
    return Question(
        name=None,
        kind=kind,
        instructions=(TextPart(text=f" {text}\n"), ImagePart(data=b"x"), TextPart(text="")),
        options=tuple(made),
    )


def written(number: int, asked: Question) -> WrittenQuestion:
    return PROMPT_FORMATS[number](asked, letter_codes)


BLUE = Option(value="blue", description=" any\nblue ")


def test_format_1() -> None:
    predicate = written(1, question(QuestionKind.PREDICATE, text="It is torn."))
    assert predicate.text == (
        "It is torn.\n\nIs this true of the input above? Answer with Yes or No only."
    )
    assert predicate.labels == (("Yes", "yes"), ("No", "no"))
    choice = written(1, question(QuestionKind.CHOICE, "red", BLUE, True))
    assert choice.text == (
        "Which?\n\nOptions:\nA: red\nB: blue - any blue\nC: true\n\n"
        "Answer with the letter of the best option only."
    )
    assert choice.labels == (("A",), ("B",), ("C",))
    score = written(1, question(QuestionKind.SCORE, "not", "badly"))
    assert score.text == (
        "Which?\n\nLevels, from the lowest:\nA: not\nB: badly\n\n"
        "Answer with the letter of the best level only."
    )


def test_format_2() -> None:
    assert written(2, question(QuestionKind.CHOICE, "red", "a star")).text == "Which?"
    described = written(2, question(QuestionKind.CHOICE, "red", BLUE))
    assert described.text == "Which?\n\nred\nblue - any blue"
    assert described.labels == (("red", "Red", "A red"), ("blue", "Blue", "A blue"))
    predicate = written(2, question(QuestionKind.PREDICATE, text="Is it red?"))
    assert predicate.text == "Is it red?"
    assert [labels[0] for labels in predicate.labels] == ["Yes", "No"]


@pytest.mark.parametrize(
    ("statement", "asked"),
    [
        ("There is a red circle.", "Is there a red circle?"),
        ("The shapes are blue", "Are the shapes blue?"),
        ("It is red.", "Is it red?"),
        ("The island is big.", "Is the island big?"),
        ("Is it red?", "Is it red?"),
        ("The picture shows a star.", "The picture shows a star."),
        ("It is red. It is not.", "It is red. It is not."),
        ("圆形是红色的。", "圆形是红色的。"),
    ],
)
def test_a_statement_is_asked_as_a_question(statement: str, asked: str) -> None:
    assert written(2, question(QuestionKind.PREDICATE, text=statement)).text == asked


PLAINLY = re.compile(
    r"((?:the|there|this|it|a|an)\b[^.?!\n]*?) (is|are) ([^.?!\n]+)\.?", re.IGNORECASE
)
WORDS = [
    "the",
    "It",
    "a",
    " is ",
    " are ",
    " is",
    " ",
    "red",
    ".",
    "?",
    "\n",
    "a is",
    "\u017f",
    "i\u017f ",
]


@given(st.lists(st.sampled_from(WORDS), max_size=9).map("".join))
def test_statements_are_those_of_the_plain_expression(text: str) -> None:
    """The one in use tells other texts first, which would take a step for each pair of characters."""
    found = PLAINLY.fullmatch(text)
    asked = text
    if found:
        subject, verb, rest = found.groups()
        asked = f"{verb.capitalize()} {subject[0].lower()}{subject[1:]} {rest}?"
    assert _as_question(text) == asked


VALUES = st.booleans() | st.sampled_from(
    (
        "true",
        "True",
        "yes",
        "red",
        "Red",
        "RED",
        "a red",
        "A red",
        "an ape",
        "ape",
        "x",
        "红色",
        " x ",
    )
)


@given(st.lists(VALUES, min_size=2, max_size=8, unique_by=lambda value: (type(value), value)))
def test_a_spelling_belongs_to_one_text(values: list[str | bool]) -> None:
    asked = question(QuestionKind.CHOICE, *values)
    labels = plain(asked, letter_codes).labels
    assert len(labels) == len(values)
    owners: dict[str, set[str]] = {}
    for value, spellings in zip(values, labels, strict=True):
        text = str(value).strip().lower() if isinstance(value, bool) else value.strip()
        assert spellings[0] == text
        for spelling in spellings:
            owners.setdefault(spelling, set()).add(text)
    assert all(len(texts) == 1 for texts in owners.values())
