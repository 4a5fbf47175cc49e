"""Validates OpenAI's JSON: explains unsupported roles, and finds unknown fields."""

from __future__ import annotations

from typing import TypeVar

from rest_adapter.errors import ApiError, unsupported
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
    is_role = finding.kind == "literal_error" and finding.path.rpartition(".")[2] == "role"
    if is_role and finding.value in ("tool", "function"):
        return unsupported(finding.path, finding.value, "tools are not supported yet")
    return None
