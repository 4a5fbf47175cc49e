"""Reads the questions of `/v1/decisions`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from rest_adapter.errors import invalid, unsupported
from rest_adapter.openai.content import Content
from rest_adapter.openai.decisions.evidence import read_parts
from rest_adapter.openai.part_fields import Fields
from rest_adapter.validation import wrong


_LISTS: Final[Mapping[str, str]] = {"choice": "choices", "score": "levels"}
"""The types of questions with a list, and its field."""
_TYPES: Final = ("predicate", "choice", "score")
_VALUES: Final = {"choices": "value", "levels": "label"}
"""The field with the value of an entry of the list."""
_OTHER_API: Final = "this is OpenAI's API: a question has a 'type' of predicate, choice or score, and may have a 'name'"
_OF_OTHER_APIS: Final = ("id", "question", "text", "options", "criteria")


@dataclass(frozen=True, slots=True)
class Option:
    """An entry of `choices` or `levels`."""

    value: str | bool
    description: str


@dataclass(frozen=True, slots=True)
class Question:
    """A checked question.

    Attributes:
        kind: `predicate`, `choice` or `score`.
        name: Its name; None = it has none.
        instructions: Its parts.
        options: The choices or the levels.
        path: Its path in the JSON.
    """

    kind: str
    name: str | None
    instructions: tuple[Content, ...]
    options: tuple[Option, ...]
    path: str


def read_questions(value: object) -> tuple[list[Question], list[str]]:
    """Reads `questions`; how many there may be is the service's limit.

    Returns:
        The questions, and the paths of unknown fields.

    Raises:
        ApiError: It is something else, or a question is invalid; the error names the field.
    """
    if not isinstance(value, list):
        raise wrong("questions", value, "a list of questions")
    questions: list[Question] = []
    unknown: list[str] = []
    for index, item in enumerate(value):
        path = f"questions[{index}]"
        if not isinstance(item, dict):
            raise wrong(path, item, "an object")
        question, names = _question(Fields(item, path))
        questions.append(question)
        unknown += names
    return questions, unknown


def _question(item: Fields) -> tuple[Question, list[str]]:
    for name in _OF_OTHER_APIS:
        if name in item.values:
            raise unsupported(item.path_of(name), item.values[name], _OTHER_API)
    kind, path = item.values.get("type"), item.path_of("type")
    if "type" not in item.values:
        raise invalid(f"'{path}' is missing.", path, "MISSING_FIELD")
    if not isinstance(kind, str) or kind not in _TYPES:
        raise wrong(path, kind, f"one of: {', '.join(_TYPES)}")
    own = _LISTS.get(kind, "")
    item.refuse([name for name in _LISTS.values() if name != own], f"a {kind} has none")
    path = item.path_of("instructions")
    if "instructions" not in item.values:
        raise invalid(f"'{path}' is missing.", path, "MISSING_FIELD")
    instructions, unknown = read_parts(item.values["instructions"], path)
    options: tuple[Option, ...] = ()
    if own:
        options, names = _options(item, own)
        unknown += names
    label = item.values.get("name")
    if not isinstance(label, str | None):
        raise wrong(item.path_of("name"), label, "text")
    unknown += item.unknown(("type", "instructions", "name", *_LISTS.values()))
    return Question(kind, label, tuple(instructions), options, item.path), unknown


def _options(item: Fields, own: str) -> tuple[tuple[Option, ...], list[str]]:
    path, entries = item.path_of(own), item.values.get(own)
    if own not in item.values:
        raise invalid(f"'{path}' is missing.", path, "MISSING_FIELD")
    if not isinstance(entries, list):
        raise wrong(path, entries, "a list of objects")
    unknown: list[str] = []
    options = []
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise wrong(f"{path}[{index}]", entry, "an object")
        fields = Fields(entry, f"{path}[{index}]")
        options.append(_option(fields, _VALUES[own], takes_truth=own == "choices"))
        unknown += fields.unknown((_VALUES[own], "description"))
    return tuple(options), unknown


def _option(entry: Fields, name: str, *, takes_truth: bool) -> Option:
    path, value = entry.path_of(name), entry.values.get(name)
    if name not in entry.values:
        raise invalid(f"'{path}' is missing.", path, "MISSING_FIELD")
    if not (isinstance(value, str) or (takes_truth and isinstance(value, bool))):
        raise wrong(path, value, "text, true or false" if takes_truth else "text")
    return Option(value, entry.text("description") or "")
