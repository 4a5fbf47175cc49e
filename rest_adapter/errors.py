"""The errors of a request, independent of their format in a REST dialect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import logging
import re
from typing import Final

import grpc

from qwenvl.errors import BY_REASON, mapping_for
from qwenvl.limits import MAX_MESSAGE_BYTES
from qwenvl.rpc import read_error
from rest_adapter.json_text import shown


_DEFAULT_RETRY_AFTER_S: Final = 1.0
_MAX_MESSAGE_CHARS: Final = 2000
_MAX_PARAM_CHARS: Final = 200
_LOG: Final = logging.getLogger(__name__)

# Messages for errors of the transport, as its own messages contain addresses.
_TRANSPORT_MESSAGES: Final = {
    "MESSAGE_TOO_LARGE": f"The request exceeds the maximum size of a gRPC message, {MAX_MESSAGE_BYTES // 2**20} MiB.",
    "ENGINE_UNAVAILABLE": "The inference service is not reachable; try again later.",
    "DEADLINE_EXCEEDED": "The request did not finish before its deadline (--request-timeout-s).",
    "ABORTED": "The request was aborted.",
    "UNSUPPORTED_PARAMETER": "The inference service does not support this request.",
}


class ApiError(Exception):
    """A failure of a request.

    Attributes:
        status: HTTP status.
        reason: UPPER_SNAKE_CASE name: a key of `qwenvl.errors.BY_REASON`, or one of the adapter's own (`INVALID_JSON`,
            `UNKNOWN_FIELD`, ...).
        message: The message for the caller, at most 2,000 characters; if empty, the dialect's code is used.
        param: Path of the offending field in the request's JSON, at most 200 characters, or None.
        retry_after_s: Seconds after which the same request may succeed; None = a retry does not help.
        headers: Response headers that HTTP requires, such as `allow`.
        metadata: The values in the message, machine-readable, from the service.
        request_id: The `x-request-id` of the response; None = there is no response with one.
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
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        message = _shortened(message, _MAX_MESSAGE_CHARS)
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        # A caller chooses names of fields.
        self.param = None if param is None else _shortened(param, _MAX_PARAM_CHARS)
        self.retry_after_s = retry_after_s
        self.headers = dict(headers or {})
        self.metadata = dict(metadata or {})
        self.request_id: str | None = None


def _shortened(text: str, maximum: int) -> str:
    return text if len(text) <= maximum else text[: maximum - 3] + "..."


def of_reason(
    reason: str,
    message: str,
    *,
    param: str | None = None,
    retry_after_s: float | None = None,
    metadata: Mapping[str, str] | None = None,
) -> ApiError:
    """Creates the error of one row of the error table.

    Args:
        reason: A key of `qwenvl.errors.BY_REASON`.
        message: The message for the caller.
        param: Path of the offending field in the request's JSON.
        retry_after_s: From the service; used only if a retry can help.
        metadata: From the service.
    """
    row = BY_REASON[reason]
    wait_s = _DEFAULT_RETRY_AFTER_S if retry_after_s is None else max(1.0, retry_after_s)
    return ApiError(
        row.http_status,
        message,
        reason=reason,
        param=param,
        retry_after_s=wait_s if row.retry else None,
        metadata=metadata,
    )


def invalid(message: str, param: str | None, reason: str = "INVALID_ARGUMENT") -> ApiError:
    """An invalid field: 400."""
    return ApiError(400, message, reason=reason, param=param)


def unsupported(param: str, value: object = None, advice: str = "leave it out") -> ApiError:
    """A field that is known but not supported: 400, never ignored.

    Args:
        param: Path of the field in the request's JSON.
        value: Its value; None = it is not told.
        advice: What to do instead.
    """
    told = "" if value is None else f" (its value is {shown(value)})"
    return invalid(f"'{param}' is not supported{told}: {advice}.", param, "UNSUPPORTED_PARAMETER")


def too_large(message: str, param: str | None = None) -> ApiError:
    """More bytes than allowed: 413."""
    return of_reason("MESSAGE_TOO_LARGE", message, param=param)


def internal() -> ApiError:
    """A defect of the server: 500 without details."""
    return of_reason("INTERNAL", "An internal error occurred.")


def stopping() -> ApiError:
    """The adapter stops and cannot wait for the request any longer."""
    return of_reason("DRAINING", "The server is stopping; try again later.")


def aborted() -> ApiError:
    """The request was aborted while it ran."""
    return of_reason("ABORTED", _TRANSPORT_MESSAGES["ABORTED"])


def from_rpc(
    error: grpc.RpcError, param_of: Callable[[str], str | None] = lambda _: None
) -> ApiError:
    """Reads a gRPC error and its google.rpc details.

    Args:
        error: The error of a call.
        param_of: Turns a proto field path (`spec.sampling.top_p`) into a path of the request's JSON (`top_p`).
    """
    failure = read_error(error)
    row = mapping_for(failure.code, failure.reason)
    if row.http_status == 500:
        # Without a reason the text is that of an exception, which may contain a prompt.
        is_known = failure.reason is not None
        _LOG.error(
            {
                "message": "the inference service failed",
                "code": failure.code.name,
                "detail": failure.message if is_known else "",
            },
            exc_info=error if is_known else None,
        )
        return internal()
    message = failure.message
    if failure.reason is None:
        message = _TRANSPORT_MESSAGES.get(row.reason, message)
    param = param_of(failure.field) if failure.field else None
    if param is None and row.reason == "MODEL_NOT_FOUND":
        param = "model"
    if param is not None:
        message = _in_words_of_the_request(message, failure.field, param)
    message += "".join(
        f" ({name}: {value})"
        for name, value in failure.metadata.items()
        if value not in message and repr(value)[1:-1] not in message
    )
    return of_reason(
        row.reason,
        message,
        param=param,
        retry_after_s=failure.retry_after_s,
        metadata=failure.metadata,
    )


def _in_words_of_the_request(message: str, field: str, param: str) -> str:
    """A message that begins with the name of a proto field, with that of the JSON field instead.

    The service writes the last component of the field's path, or the last two: `stop.strings` for `spec.stop.strings`.
    """
    last = re.sub(r"\[\d+\]", "", field).split(".")[-2:]
    for name in (".".join(last), last[-1]):
        if found := re.match(rf"{re.escape(name)}(\[\d+\])?(?![\w.])", message):
            index = found[1] or ""
            return param.removesuffix(index) + message[len(name) :]
    return message
