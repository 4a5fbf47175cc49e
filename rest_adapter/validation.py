"""Validates the JSON of a request; errors name the field by its path in the JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from rest_adapter.errors import ApiError, invalid, unsupported


_MAX_FINDINGS: Final = 64
_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A finding of pydantic.

    Attributes:
        kind: Pydantic's type of the error, such as `literal_error`.
        path: Path of the field in the JSON, such as `messages[0].role`.
        value: The value of the field.
        message: Pydantic's message.
    """

    kind: str
    path: str
    value: Any
    message: str


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
        ApiError: A field is missing or has a wrong type, or a closed object has an unknown one.
    """
    if not isinstance(document, dict):
        raise invalid("The body must be a JSON object.", None)
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        finding = _deepest(error, document)
        raise explain(finding) or _general(finding) from None


def _deepest(error: ValidationError, document: Mapping[str, Any]) -> Finding:
    """The deepest finding; its path leaves out pydantic's names of union branches."""
    findings = error.errors(include_url=False, include_context=False, include_input=False)
    located = [(_walk(finding["loc"], document), finding) for finding in findings[:_MAX_FINDINGS]]
    # The branch of a union with the deepest finding is the one that the caller most likely intended.
    location, first = max(located, key=lambda pair: len(pair[0]))
    return Finding(
        kind=first["type"],
        path=_join(location),
        value=_value_at(location, document),
        message=first["msg"],
    )


def _general(finding: Finding) -> ApiError:
    if finding.kind == "extra_forbidden":
        return unsupported(finding.path)
    if finding.kind == "missing":
        return invalid(f"'{finding.path}' is missing.", finding.path, "MISSING_FIELD")
    return invalid(f"'{finding.path}': {finding.message}.", finding.path)


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
