"""Validates the JSON of a request; errors name the field by its path in the JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from rest_adapter.errors import ApiError, invalid, unsupported
from rest_adapter.openai.content import PART_TYPES, UNSUPPORTED_PART_TYPES
from rest_adapter.openai.fields import AnswerRequest, unknown_fields


_MAX_FINDINGS: Final = 64
_Request = TypeVar("_Request", bound=AnswerRequest)


def parse(kind: type[_Request], document: object) -> tuple[_Request, list[str]]:
    """Checks a parsed JSON document.

    Returns:
        The request, and the paths of unknown fields.

    Raises:
        ApiError: A field is missing, has a wrong type, or is known but not supported.
    """
    if not isinstance(document, dict):
        raise invalid("The body must be a JSON object.", None)
    try:
        request = kind.model_validate(document)
    except ValidationError as error:
        raise _of_validation(error, document) from None
    return request, [*unknown_fields(request)]


def _of_validation(error: ValidationError, document: Mapping[str, Any]) -> ApiError:
    """The error for the deepest finding; its path leaves out pydantic's names of union branches."""
    findings = error.errors(include_url=False, include_context=False, include_input=False)
    located = [(_walk(finding["loc"], document), finding) for finding in findings[:_MAX_FINDINGS]]
    # The branch of a union with the deepest finding is the one that the caller most likely intended.
    location, first = max(located, key=lambda pair: len(pair[0]))
    param = _join(location)
    kind = first["type"]
    value = _value_at(location, document)
    if kind == "literal_error" and location[-1] == "role" and value in ("tool", "function"):
        return invalid(f"The role '{value}' is not supported.", param, "UNSUPPORTED_PARAMETER")
    if kind.startswith("union_tag"):
        tag = value.get("type") if isinstance(value, dict) else None
        if isinstance(tag, str) and tag in UNSUPPORTED_PART_TYPES:
            return invalid(f"'{tag}' parts are not supported.", param, "UNSUPPORTED_PARAMETER")
        return invalid(f"'type' must be one of: {', '.join(PART_TYPES)}.", f"{param}.type")
    if kind == "extra_forbidden":
        return unsupported(param)
    if kind == "missing":
        return invalid(f"'{param}' is missing.", param, "MISSING_FIELD")
    return invalid(f"'{param}': {first['msg']}.", param)


def _walk(location: Sequence[int | str], document: object) -> list[int | str]:
    """The steps of a pydantic location that exist in the document."""
    steps: list[int | str] = []
    value: object = document
    for position, step in enumerate(location):
        last = position == len(location) - 1
        after_index = position > 0 and isinstance(location[position - 1], int)
        if after_index and isinstance(value, dict) and step == value.get("type"):
            continue  # the tag by which pydantic selected the part type; a part may have a key of this name
        if isinstance(step, int) and isinstance(value, list) and step < len(value):
            value = value[step]
        elif isinstance(step, str) and isinstance(value, dict) and (step in value or last):
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
