"""Validates the JSON of a request; errors name the field by its path in the JSON, its value and what is expected."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rest_adapter.errors import ApiError, invalid
from rest_adapter.json_text import shown


_MAX_FINDINGS: Final = 64
_EXPECTED: Final = {
    "bool_type": "true or false",
    "dict_type": "an object",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_from_float": "an integer",
    "int_type": "an integer",
    "list_type": "a list",
    "model_attributes_type": "an object",
    "model_type": "an object",
    "string_type": "text",
}
_TAG_MISSING: Final = "union_tag_not_found"
_TAG_WRONG: Final = "union_tag_invalid"
_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What is wrong with a field.

    Attributes:
        kind: Pydantic's type of the error, such as `literal_error`.
        path: Path of the field in the JSON, such as `messages[0].role`.
        value: The value of the field; None if it is missing.
        expected: What it must be, to complete `must be ...`.
    """

    kind: str
    path: str
    value: Any
    expected: str


def validate(
    kind: type[_Model],
    document: object,
    explain: Callable[[Finding], ApiError | None] = lambda _: None,
) -> _Model:
    """Checks a parsed JSON document.

    Args:
        kind: The schema.
        document: The document.
        explain: Returns the dialect's own error for a finding; None = a general one.

    Raises:
        ApiError: A field is missing or has a wrong type.
    """
    if not isinstance(document, dict):
        raise invalid(f"The body must be a JSON object, but is {shown(document)}.", None)
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        finding = _deepest(error, document)
        raise explain(finding) or _general(finding) from None


def wrong(path: str, value: object, expected: str) -> ApiError:
    """The error for a field with a wrong value."""
    return invalid(f"'{path}' is {shown(value)}, but must be {expected}.", path)


def check_count(path: str, values: object, maximum: int) -> None:
    """Refuses a list with too many entries before these are read; anything else is left to its reader.

    Raises:
        ApiError: There are more.
    """
    if isinstance(values, list) and len(values) > maximum:
        raise invalid(f"'{path}' has {len(values)} entries, but must have at most {maximum}.", path)


def check_length(path: str, value: object, maximum: int) -> None:
    """Refuses a text that is too long; anything else is left to its reader.

    Raises:
        ApiError: It is longer.
    """
    if isinstance(value, str) and len(value) > maximum:
        raise invalid(
            f"'{path}' has {len(value)} characters, but must have at most {maximum}.", path
        )


def _deepest(error: ValidationError, document: Mapping[str, Any]) -> Finding:
    """The deepest finding; its path leaves out pydantic's names of union branches."""
    findings = error.errors(include_url=False, include_input=False)[:_MAX_FINDINGS]
    located = [(_walk(finding, document), finding) for finding in findings]
    # The branch of a union with the deepest finding is the one that the caller most likely intended.
    location, first = max(located, key=lambda pair: len(pair[0]))
    same = [finding for steps, finding in located if steps == location]
    return Finding(
        kind=first["type"],
        path=_join(location),
        value=_value_at(location, document),
        expected=" or ".join(dict.fromkeys(map(_expected, same))),
    )


def _expected(finding: ErrorDetails) -> str:
    """What a finding asks for, in the words of JSON."""
    kind, context = finding["type"], finding.get("ctx", {})
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    if kind in ("literal_error", _TAG_WRONG):
        choices = str(context.get("expected") or f"one of: {context['expected_tags']}")
        return choices.replace("'", "")
    if kind in ("greater_than_equal", "less_than_equal"):
        limit = context.get("ge", context.get("le"))
        return f"{limit} or {'more' if kind.startswith('greater') else 'less'}"
    if kind == "too_short":
        return f"a list with at least {context['min_length']} entry"
    if kind == "value_error":
        return str(context["error"])
    return finding["msg"][:1].lower() + finding["msg"][1:]


def _general(finding: Finding) -> ApiError:
    if finding.kind in ("missing", _TAG_MISSING):
        return invalid(f"'{finding.path}' is missing.", finding.path, "MISSING_FIELD")
    return wrong(finding.path, finding.value, finding.expected)


def _walk(finding: ErrorDetails, document: object) -> list[int | str]:
    """The steps of a finding's location that exist in the document, and the name of a missing field."""
    steps: list[int | str] = []
    value: object = document
    location = finding["loc"]
    if finding["type"] in (_TAG_MISSING, _TAG_WRONG):
        # Pydantic names the object, not the field in it by which the branches of a union differ.
        location += (finding["ctx"]["discriminator"].strip("'"),)
    for position, step in enumerate(location):
        missing = finding["type"] in ("missing", _TAG_MISSING) and position == len(location) - 1
        if isinstance(step, int) and isinstance(value, list) and step < len(value):
            value = value[step]
        elif isinstance(step, str) and isinstance(value, dict) and (step in value or missing):
            value = value.get(step)
        else:
            continue
        steps.append(step)
    return steps


def _value_at(steps: Sequence[int | str], document: Any) -> Any:
    value = document
    for step in steps:
        value = value[step] if isinstance(step, int) else value.get(step)
    return value


def _join(steps: Sequence[int | str]) -> str:
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return path.removeprefix(".")
