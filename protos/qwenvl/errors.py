"""The one error table: reason <-> gRPC code <-> HTTP status and OpenAI error.

It lists every reason that the service may put into `google.rpc.ErrorInfo.reason`. The reason takes precedence over
the gRPC code, because one code maps to several HTTP statuses (PERMISSION_DENIED is 400 for a refused URL and 403 for
a refused key).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import grpc


DOMAIN: Final = "qwenvl.inference"
"""`google.rpc.ErrorInfo.domain` of every error of this service (AIP-193)."""


@dataclass(frozen=True, slots=True)
class ErrorMapping:
    """The representation of one reason in each API.

    Attributes:
        reason: UPPER_SNAKE_CASE name, at most 63 characters (AIP-193).
        grpc_code: Status of the gRPC call.
        http_status: Status of the REST response.
        openai_type: `error.type` of the OpenAI error body.
        openai_code: `error.code` of the OpenAI error body.
        retry: Whether the same request may succeed later: if so, sent as `retry-after`; if not, for 409 and 5xx as
            `x-should-retry: false`.
    """

    reason: str
    grpc_code: grpc.StatusCode
    http_status: int
    openai_type: str
    openai_code: str
    retry: bool = False


_C = grpc.StatusCode
_INVALID = "invalid_request_error"

_TABLE: Final = (
    ErrorMapping("INVALID_ARGUMENT", _C.INVALID_ARGUMENT, 400, _INVALID, "invalid_value"),
    ErrorMapping("INVALID_IMAGE", _C.INVALID_ARGUMENT, 400, _INVALID, "invalid_image"),
    ErrorMapping("IMAGE_TOO_LARGE", _C.INVALID_ARGUMENT, 400, _INVALID, "image_too_large"),
    ErrorMapping("TOO_MANY_IMAGES", _C.INVALID_ARGUMENT, 400, _INVALID, "too_many_images"),
    ErrorMapping("INVALID_IMAGE_URL", _C.INVALID_ARGUMENT, 400, _INVALID, "invalid_image_url"),
    ErrorMapping("IMAGE_URL_REFUSED", _C.PERMISSION_DENIED, 400, _INVALID, "invalid_image_url"),
    ErrorMapping("IMAGE_FETCH_FAILED", _C.INVALID_ARGUMENT, 400, _INVALID, "invalid_image_url"),
    ErrorMapping("IMAGE_FETCH_TIMEOUT", _C.INVALID_ARGUMENT, 400, _INVALID, "invalid_image_url"),
    ErrorMapping(
        "CONTEXT_LENGTH_EXCEEDED", _C.INVALID_ARGUMENT, 400, _INVALID, "context_length_exceeded"
    ),
    ErrorMapping(
        "UNSUPPORTED_PARAMETER", _C.FAILED_PRECONDITION, 400, _INVALID, "unsupported_parameter"
    ),
    ErrorMapping("CONSTRAINT_FAILED", _C.INVALID_ARGUMENT, 422, _INVALID, "constraint_failed"),
    ErrorMapping("UNAUTHENTICATED", _C.UNAUTHENTICATED, 401, _INVALID, "invalid_api_key"),
    ErrorMapping("PERMISSION_DENIED", _C.PERMISSION_DENIED, 403, _INVALID, "permission_denied"),
    ErrorMapping("MODEL_NOT_FOUND", _C.NOT_FOUND, 404, _INVALID, "model_not_found"),
    ErrorMapping("REQUEST_ID_IN_USE", _C.ALREADY_EXISTS, 409, _INVALID, "conflict"),
    ErrorMapping("MESSAGE_TOO_LARGE", _C.RESOURCE_EXHAUSTED, 413, _INVALID, "request_too_large"),
    ErrorMapping(
        "QUEUE_FULL", _C.RESOURCE_EXHAUSTED, 429, "rate_limit_error", "rate_limit_exceeded", True
    ),
    ErrorMapping(
        "RATE_LIMIT_EXCEEDED",
        _C.RESOURCE_EXHAUSTED,
        429,
        "rate_limit_error",
        "rate_limit_exceeded",
        True,
    ),
    ErrorMapping("ABORTED", _C.CANCELLED, 499, _INVALID, "request_aborted"),
    ErrorMapping("INTERNAL", _C.INTERNAL, 500, "server_error", "internal_error"),
    ErrorMapping("ENGINE_UNAVAILABLE", _C.UNAVAILABLE, 503, "server_error", "overloaded", True),
    ErrorMapping("MODEL_LOADING", _C.UNAVAILABLE, 503, "server_error", "overloaded", True),
    ErrorMapping("DRAINING", _C.UNAVAILABLE, 503, "server_error", "overloaded", True),
    ErrorMapping(
        "GPU_OUT_OF_MEMORY", _C.RESOURCE_EXHAUSTED, 503, "server_error", "overloaded", True
    ),
    ErrorMapping("DEADLINE_EXCEEDED", _C.DEADLINE_EXCEEDED, 504, "server_error", "timeout"),
)

BY_REASON: Final = {mapping.reason: mapping for mapping in _TABLE}
"""Every known reason."""

_BY_CODE: Final = {
    _C.INVALID_ARGUMENT: "INVALID_ARGUMENT",
    _C.OUT_OF_RANGE: "INVALID_ARGUMENT",
    _C.FAILED_PRECONDITION: "UNSUPPORTED_PARAMETER",
    _C.UNIMPLEMENTED: "UNSUPPORTED_PARAMETER",
    _C.UNAUTHENTICATED: "UNAUTHENTICATED",
    _C.PERMISSION_DENIED: "PERMISSION_DENIED",
    _C.NOT_FOUND: "MODEL_NOT_FOUND",
    _C.ALREADY_EXISTS: "REQUEST_ID_IN_USE",
    # Only the transport sends this code without a reason, if a message exceeds the limit.
    _C.RESOURCE_EXHAUSTED: "MESSAGE_TOO_LARGE",
    _C.CANCELLED: "ABORTED",
    _C.ABORTED: "ABORTED",
    _C.UNAVAILABLE: "ENGINE_UNAVAILABLE",
    _C.DEADLINE_EXCEEDED: "DEADLINE_EXCEEDED",
}


def mapping_for(code: grpc.StatusCode, reason: str | None = None) -> ErrorMapping:
    """Finds the mapping of a received error: by reason if it is known, else by gRPC code.

    Args:
        code: Status of the call.
        reason: `ErrorInfo.reason`, or None for an error of the transport.
    """
    if reason is not None and reason in BY_REASON:
        return BY_REASON[reason]
    return BY_REASON[_BY_CODE.get(code, "INTERNAL")]
