"""What went wrong with a request, independent of how a REST dialect words it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import grpc

from qwenvl.errors import BY_REASON, mapping_for
from qwenvl.rpc import read_error


_DEFAULT_RETRY_AFTER_S: Final = 1.0

# Texts for errors that the transport made itself: its own text names addresses, and helps no caller.
_TRANSPORT_MESSAGES: Final = {
    "MESSAGE_TOO_LARGE": "The request is larger than the service accepts.",
    "ENGINE_UNAVAILABLE": "The inference service is not reachable.",
    "DEADLINE_EXCEEDED": "The request took longer than the server allows.",
    "ABORTED": "The request was aborted.",
    "UNSUPPORTED_PARAMETER": "The inference service does not support this.",
}


class ApiError(Exception):
    """A failure of a request.

    Attributes:
        status: HTTP status.
        reason: UPPER_SNAKE_CASE name: a key of `qwenvl.errors.BY_REASON`, or one of the adapter's own (`INVALID_JSON`,
            `UNKNOWN_FIELD`, ...).
        message: What the caller reads; where it is empty, the dialect's word for `reason` stands for it.
        param: Path of the offending field in the request's JSON, or None.
        retry_after_s: When the same request may succeed, in seconds; None = repeating it is useless.
        headers: Response headers that HTTP itself asks for, such as `allow`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        reason: str,
        param: str | None = None,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.headers = dict(headers or {})


def of_reason(
    reason: str, message: str, *, param: str | None = None, retry_after_s: float | None = None
) -> ApiError:
    """Makes the error of one row of the error table.

    Args:
        reason: A key of `qwenvl.errors.BY_REASON`.
        message: What the caller reads.
        param: Path of the offending field in the request's JSON.
        retry_after_s: What the service says; used only where repeating the request can help.
    """
    row = BY_REASON[reason]
    wait_s = _DEFAULT_RETRY_AFTER_S if retry_after_s is None else max(1.0, retry_after_s)
    return ApiError(
        row.http_status,
        message,
        reason=reason,
        param=param,
        retry_after_s=wait_s if row.retry else None,
    )


def invalid(message: str, param: str | None, reason: str = "INVALID_ARGUMENT") -> ApiError:
    """A field that is wrong: 400."""
    return ApiError(400, message, reason=reason, param=param)


def unsupported(param: str) -> ApiError:
    """A field that is known and not supported: 400, never ignored silently."""
    return invalid(f"'{param}' is not supported.", param, "UNSUPPORTED_PARAMETER")


def too_large(message: str) -> ApiError:
    """More bytes than allowed: 413."""
    return of_reason("MESSAGE_TOO_LARGE", message)


def internal() -> ApiError:
    """A defect of the server: 500 without a detail."""
    return of_reason("INTERNAL", "The server had an internal error.")


def aborted() -> ApiError:
    """Somebody aborted the request while it ran."""
    return of_reason("ABORTED", _TRANSPORT_MESSAGES["ABORTED"])


def from_rpc(
    error: grpc.RpcError, param_of: Callable[[str], str | None] = lambda _: None
) -> ApiError:
    """Reads a gRPC error and its google.rpc details.

    Args:
        error: As raised by a call.
        param_of: Turns a proto field path (`spec.sampling.top_p`) into a path of the request's JSON (`top_p`).
    """
    failure = read_error(error)
    row = mapping_for(failure.code, failure.reason)
    if row.http_status == 500:
        return internal()
    message = failure.message
    if failure.reason is None:
        message = _TRANSPORT_MESSAGES.get(row.reason, message)
    param = param_of(failure.field) if failure.field else None
    if param is None and row.reason == "MODEL_NOT_FOUND":
        param = "model"
    return of_reason(row.reason, message, param=param, retry_after_s=failure.retry_after_s)
