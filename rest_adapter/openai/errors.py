"""Renders OpenAI's error body, as a JSON response and as the last event of a stream."""

from __future__ import annotations

from typing import Final

import orjson

from qwenvl.errors import BY_REASON
from rest_adapter.dialect import retry_headers
from rest_adapter.errors import ApiError


_TYPE: Final = "invalid_request_error"
_CODES: Final = {
    "BODY_TIMEOUT": "timeout",
    "INVALID_ENCODING": "invalid_encoding",
    "INVALID_JSON": "invalid_json",
    "MALFORMED_REQUEST": "malformed_request",
    "METHOD_NOT_ALLOWED": "method_not_allowed",
    "MISSING_FIELD": "missing_required_parameter",
    "NOT_FOUND": "not_found",
    "PREVIOUS_RESPONSE_NOT_FOUND": "previous_response_not_found",
    "STORE_UNAVAILABLE": "overloaded",
    "UNKNOWN_FIELD": "unknown_parameter",
    "UNSUPPORTED_API": "unsupported_api",
    "UNSUPPORTED_MEDIA_TYPE": "unsupported_media",
}
"""`error.code` of the adapter's reasons; those of the service are in `qwenvl.errors`."""


def type_and_code(error: ApiError) -> tuple[str, str]:
    """`error.type` and `error.code` of the error body."""
    if row := BY_REASON.get(error.reason):
        return row.openai_type, row.openai_code
    kind = "server_error" if error.status == 503 else _TYPE
    return kind, _CODES.get(error.reason, "invalid_request")


def render_error(error: ApiError) -> tuple[dict[str, str], bytes]:
    """The headers and the body of an error response."""
    return retry_headers(error), _body(error)


def render_error_event(error: ApiError) -> bytes:
    """The error as the last event of a stream."""
    return b"data: " + _body(error) + b"\n\n"


def _body(error: ApiError) -> bytes:
    kind, code = type_and_code(error)
    message = error.message or code
    if error.reason == "CONTEXT_LENGTH_EXCEEDED" and code not in message:
        # LangChain looks for the code in the text of the exception, which openai 3 makes of the message alone.
        message += f" ({code})"
    document = {
        "message": message,
        "type": kind,
        "param": error.param,
        "code": code,
    }
    if error.request_id is not None:
        document["request_id"] = error.request_id
    return orjson.dumps({"error": document})
