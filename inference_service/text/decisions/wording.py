"""The wording of questions, in versions: it is part of the result, so that a published one is never changed.

Format 1 lists the options with letters as labels, for models that follow instructions. Format 2 is the question alone,
for models that were taught to answer such questions in the options' own words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
import re
import string
from typing import Final

from inference_service.decisions import Option, Question, QuestionKind


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenQuestion:
    """A question as a text, and what the answers to it may be.

    Attributes:
        text: Follows the input in the user's turn; neither begins nor ends with white space.
        labels: For each option, in order, the texts that the model may answer for it.
        lists_options: The text has the options, in their order.
    """

    text: str
    labels: tuple[tuple[str, ...], ...]
    lists_options: bool = False


_YES_NO: Final = (("Yes", "yes"), ("No", "no"))
# One sentence, which the lookahead tells first: otherwise each `is` would be tried up to the end.
_STATEMENT: Final = re.compile(
    r"(?=[^.?!\n]++\.?\Z)((?:the|there|this|it|a|an)\b[^.?!\n]*?) (is|are) ([^.?!\n]+)\.?",
    re.IGNORECASE,
)
_LETTERS: Final = string.ascii_uppercase
_PLAIN_YES_NO: Final = (("Yes", "yes", "是", "有"), ("No", "no", "不", "没有", "否"))
_TRUTH: Final = {True: ("True", "Yes", "yes"), False: ("False", "No", "no")}


def letter_codes(count: int) -> list[str]:
    """Labels for at least so many options, at most 676: the first letters, or beyond 26 all of AA to ZZ."""
    if count <= len(_LETTERS):
        return list(_LETTERS[:count])
    return ["".join(pair) for pair in product(_LETTERS, repeat=2)]


def lettered(question: Question, codes: Callable[[int], Sequence[str]]) -> WrittenQuestion:
    """Format 1.

    Args:
        question: The question.
        codes: Returns the labels for a number of options.
    """
    if question.kind is QuestionKind.PREDICATE:
        lines = ("Is this true of the input above? Answer with Yes or No only.",)
        return WrittenQuestion(text=_joined(question.text, lines), labels=_YES_NO)
    labels = codes(len(question.options))
    listed = [
        f"{label}: {_line(option)}" for label, option in zip(labels, question.options, strict=True)
    ]
    if question.kind is QuestionKind.CHOICE:
        head, last = "Options:", "Answer with the letter of the best option only."
    else:
        head, last = "Levels, from the lowest:", "Answer with the letter of the best level only."
    return WrittenQuestion(
        text=_joined(question.text, (head, *listed, "", last)),
        labels=tuple((label,) for label in labels),
        lists_options=True,
    )


def plain(question: Question, codes: Callable[[int], Sequence[str]]) -> WrittenQuestion:
    """Format 2; options are listed only if they have descriptions, which would be lost."""
    del codes
    if question.kind is QuestionKind.PREDICATE:
        return WrittenQuestion(text=_as_question(question.text), labels=_PLAIN_YES_NO)
    listed = [_line(option) for option in question.options]
    described = any(option.description for option in question.options)
    return WrittenQuestion(
        text=_joined(question.text, listed if described else ()),
        labels=_spellings(question.options),
        lists_options=described,
    )


PROMPT_FORMATS: Final[
    Mapping[int, Callable[[Question, Callable[[int], Sequence[str]]], WrittenQuestion]]
] = {1: lettered, 2: plain}
"""The versions of the wording."""


def _as_question(text: str) -> str:
    """An English statement with `is` or `are` as a question, `Is it red?` for `It is red.`; any other text as it is."""
    statement = _STATEMENT.fullmatch(text)
    if statement is None:
        return text
    subject, verb, rest = statement.groups()
    return f"{verb.capitalize()} {subject[0].lower()}{subject[1:]} {rest}?"


def _joined(text: str, lines: Sequence[str]) -> str:
    return "\n".join((text, "", *lines)) if lines else text


def _line(option: Option) -> str:
    """An option on one line."""
    value = _text(option)
    description = " ".join(option.description.split())
    return f"{value} - {description}" if description else value


def _text(option: Option) -> str:
    if isinstance(option.value, bool):
        return "true" if option.value else "false"
    return " ".join(option.value.split())


def _spellings(options: Sequence[Option]) -> tuple[tuple[str, ...], ...]:
    """For each option its text and variants of it, each of one option; options with the same text have the same."""
    owners: dict[str, str] = {text: text for text in map(_text, options)}
    found: list[tuple[str, ...]] = []
    for option in options:
        text = _text(option)
        variants = [v for v in _variants(option) if owners.setdefault(v, text) == text]
        found.append(tuple(dict.fromkeys((text, *variants))))
    return tuple(found)


def _variants(option: Option) -> Iterator[str]:
    """Other spellings of an option at the beginning of an answer: capitals, and an English article."""
    text = _text(option)
    if isinstance(option.value, bool):
        yield from _TRUTH[option.value]
        return
    lower = text[0].lower() + text[1:]
    yield text[0].upper() + text[1:]
    yield lower
    if text.isascii() and text[0].isalpha():
        article = "an" if lower[0] in "aeiou" else "a"
        yield f"{article.capitalize()} {lower}"
