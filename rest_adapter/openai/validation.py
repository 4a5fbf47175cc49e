"""Validates OpenAI's JSON: explains unsupported roles and parts, and finds unknown fields."""

from __future__ import annotations

from typing import TypeVar

from rest_adapter.errors import ApiError, invalid
from rest_adapter.openai.content import PART_TYPES, UNSUPPORTED_PART_TYPES
from rest_adapter.openai.fields import AnswerRequest, unknown_answer_fields
from rest_adapter.validation import Finding, validate


_Request = TypeVar("_Request", bound=AnswerRequest)


def parse(kind: type[_Request], document: object) -> tuple[_Request, list[str]]:
    """Checks a parsed JSON document.

    Returns:
        The request, and the paths of unknown fields.

    Raises:
        ApiError: A field is missing, has a wrong type, or is known but not supported.
    """
    request = validate(kind, document, _explain)
    return request, [*unknown_answer_fields(request)]


def _explain(finding: Finding) -> ApiError | None:
    path, value = finding.path, finding.value
    is_role = finding.kind == "literal_error" and path.rpartition(".")[2] == "role"
    if is_role and value in ("tool", "function"):
        return invalid(f"The role '{value}' is not supported.", path, "UNSUPPORTED_PARAMETER")
    if finding.kind.startswith("union_tag"):
        tag = value.get("type") if isinstance(value, dict) else None
        if isinstance(tag, str) and tag in UNSUPPORTED_PART_TYPES:
            return invalid(f"'{tag}' parts are not supported.", path, "UNSUPPORTED_PARAMETER")
        return invalid(f"'type' must be one of: {', '.join(PART_TYPES)}.", f"{path}.type")
    return None
