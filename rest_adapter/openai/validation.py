"""Validates OpenAI's JSON: explains bodies of other APIs, and finds unknown fields."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

from rest_adapter.errors import ApiError, invalid
from rest_adapter.openai.fields import AnswerRequest, check_labels, unknown_answer_fields
from rest_adapter.openai.foreign_bodies import foreign_format
from rest_adapter.validation import Finding, validate


_Request = TypeVar("_Request", bound=AnswerRequest)


def parse(kind: type[_Request], document: object) -> tuple[_Request, list[str]]:
    """Checks a parsed JSON document.

    Returns:
        The request, and the paths of unknown fields.

    Raises:
        ApiError: A field is missing, has a wrong type, or is known but not supported.
    """
    check_labels(document)
    main = next((name for name in ("messages", "prompt") if name in kind.model_fields), None)
    request = validate(kind, document, partial(_explain, document, main))
    return request, [*unknown_answer_fields(request)]


def _explain(document: object, main: str | None, finding: Finding) -> ApiError | None:
    is_missing = finding.kind == "missing" and finding.path in ("model", main)
    if main and is_missing and isinstance(document, dict) and main not in document:
        other = foreign_format(document, main)
        if other is not None:
            return invalid(f"'{main}' is missing: {other}.", main, "MISSING_FIELD")
    return None
