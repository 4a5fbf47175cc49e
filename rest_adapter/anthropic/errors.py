"""Renders Anthropic's error body, as a JSON response and as the last event of a stream."""

from __future__ import annotations

from collections.abc import Mapping
import re
from typing import Any, Final

import orjson

from rest_adapter.dialect import retry_headers
from rest_adapter.errors import ApiError


OVERLOADED: Final = 529
"""The status of a service that has no room for the request, which has no standard one."""

_OVERLOADS: Final = frozenset(("QUEUE_FULL", "GPU_OUT_OF_MEMORY"))
_TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    499: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}
"""`error.type` by status; every other 4xx is an invalid request, every other 5xx an error of the API."""
_INDEX: Final = re.compile(r"\[(\d+)\]")
_SOURCE: Final = re.compile(r"\.source(?:\.\w+)?$")


def status_of(error: ApiError) -> int:
    """The HTTP status of an error: 529 where there is no room for the request, else the error's own."""
    return OVERLOADED if error.reason in _OVERLOADS else error.status


def type_of(error: ApiError) -> str:
    """`error.type` of the error body."""
    status = status_of(error)
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


def render_error(error: ApiError) -> tuple[dict[str, str], bytes]:
    """The headers and the body of an error response."""
    return retry_headers(error), _body(error)


def render_error_event(error: ApiError) -> bytes:
    """The error as the last event of a stream."""
    return b"event: error\ndata: " + _body(error) + b"\n\n"


def dotted(path: str) -> str:
    """A path as Anthropic writes it: `messages.0.content` for `messages[0].content`."""
    return _INDEX.sub(r".\1", path)


def _body(error: ApiError) -> bytes:
    document: dict[str, Any] = {"type": type_of(error), "message": _message(error)}
    if (details := _details(error)) is not None:
        document["details"] = details
    return orjson.dumps({"type": "error", "error": document, "request_id": error.request_id})


def _message(error: ApiError) -> str:
    """The message with the path of the field: the body has no field for it."""
    message = error.message or error.reason.lower()
    if error.reason == "CONTEXT_LENGTH_EXCEEDED":
        return _overflow(message, error.metadata)
    if error.param is None:
        return message
    path = dotted(error.param)
    message = message.replace(error.param, path)
    return message if path in message else f"{path}: {message}"


def _overflow(message: str, told: Mapping[str, str]) -> str:
    """An overflow of the context window in Anthropic's words, by which clients tell it and read its figures."""
    figures = ("prompt_tokens", "min_prompt_tokens", "max_tokens", "max_context_tokens")
    exact, least, asked, window = (int(told.get(name, 0)) for name in figures)
    if asked and exact + asked > window:
        return (
            f"input length and `max_tokens` exceed context limit: {exact} + {asked} > {window}, decrease input length"
            " or `max_tokens` and try again"
        )
    prompt = exact or least
    if not prompt or not window:
        return f"prompt is too long: {message}"
    # A prompt that fills the window exactly leaves no room for an answer.
    maximum = min(window, prompt - 1)
    return f"prompt is too long: {'' if exact else 'at least '}{prompt} tokens > {maximum} maximum"


def _details(error: ApiError) -> dict[str, Any] | None:
    """What a client needs in order to do without a thread, or to make an image smaller, in the form that it reads."""
    if (error.reason, error.param) == ("UNSUPPORTED_PARAMETER", "thread"):
        return {"error_code": "thread_unsupported_request"}
    sides = [error.metadata.get(name, "") for name in ("max_width", "max_height")]
    if error.param is None or not all(side.isdecimal() for side in sides):
        return None
    return {
        "error_code": "image_dimensions_too_large",
        "max_side_length_pixels": max(map(int, sides)),
        "paths": [dotted(_SOURCE.sub("", error.param))],
    }
