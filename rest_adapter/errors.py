"""What a REST caller is told when something fails: status, OpenAI error body and retry headers.

Owns `ApiError` and the reading of gRPC errors.
"""

from __future__ import annotations

from collections.abc import Callable
import math
from typing import Final

from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
import grpc
from grpc_status import rpc_status
import orjson

from qwenvl.errors import BY_REASON, ErrorMapping, mapping_for


INVALID: Final = "invalid_request_error"
_DEFAULT_RETRY_AFTER_S: Final = 1

# Texts for errors that the transport made itself: its own text names addresses, and helps no caller.
_TRANSPORT_MESSAGES: Final = {
    "MESSAGE_TOO_LARGE": "The request is larger than the service accepts.",
    "ENGINE_UNAVAILABLE": "The inference service is not reachable.",
    "DEADLINE_EXCEEDED": "The request took longer than the server allows.",
    "ABORTED": "The request was aborted.",
    "UNSUPPORTED_PARAMETER": "The inference service does not support this.",
}


class ApiError(Exception):
    """A failure as the caller sees it.

    Attributes:
        status: HTTP status.
        message: What the caller reads.
        type: `error.type` of the OpenAI error body.
        param: Path of the offending field in the request's JSON, or None.
        code: `error.code` of the OpenAI error body, or None.
        headers: Extra response headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID,  # noqa: A002 - the name that OpenAI's body has
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = headers or {}

    def body(self) -> bytes:
        """Renders the OpenAI error body."""
        error = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return orjson.dumps({"error": error})


def invalid(message: str, param: str | None, code: str = "invalid_value") -> ApiError:
    """A field that is wrong: 400."""
    return ApiError(400, message, param=param, code=code)


def unsupported(param: str) -> ApiError:
    """A field that is known, and not served: 400, never silent."""
    return invalid(f"'{param}' is not supported.", param, "unsupported_parameter")


def too_large(message: str) -> ApiError:
    """More bytes than allowed: 413."""
    return ApiError(413, message, code="request_too_large")


def internal() -> ApiError:
    """A defect of ours: 500 without a detail."""
    return of_mapping(BY_REASON["INTERNAL"], "The server had an internal error.")


def aborted() -> ApiError:
    """Somebody aborted the request while it ran."""
    return of_mapping(BY_REASON["ABORTED"], _TRANSPORT_MESSAGES["ABORTED"])


def of_mapping(
    mapping: ErrorMapping,
    message: str,
    *,
    param: str | None = None,
    retry_after_s: float | None = None,
) -> ApiError:
    """Makes the error of one row of the error table.

    Args:
        mapping: The row.
        message: What the caller reads.
        param: Path of the offending field in the request's JSON.
        retry_after_s: When the service says that trying again can help.
    """
    headers = {}
    if mapping.retry:
        wait_s = _DEFAULT_RETRY_AFTER_S if retry_after_s is None else max(1, retry_after_s)
        headers["retry-after"] = str(math.ceil(wait_s))
    elif mapping.http_status == 409 or mapping.http_status >= 500:
        # OpenAI's clients repeat these by themselves; here it would be the same work for the same end.
        headers["x-should-retry"] = "false"
    return ApiError(
        mapping.http_status,
        message,
        type=mapping.openai_type,
        param=param,
        code=mapping.openai_code,
        headers=headers,
    )


def from_rpc(
    error: grpc.aio.AioRpcError, param_of: Callable[[str], str | None] = lambda _: None
) -> ApiError:
    """Reads a gRPC error and its google.rpc details.

    Args:
        error: As raised by a call.
        param_of: Turns a proto field path (`spec.sampling.top_p`) into a path of the request's JSON (`top_p`).
    """
    reason: str | None = None
    field = ""
    retry_after_s: float | None = None
    info = error_details_pb2.ErrorInfo()
    request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in _details(error):
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(request) and request.field_violations:
            field = request.field_violations[0].field
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    mapping = mapping_for(error.code(), reason)
    if mapping.http_status == 500:
        return internal()
    message = error.details() or mapping.openai_code
    if reason is None:
        message = _TRANSPORT_MESSAGES.get(mapping.reason, message)
    param = param_of(field) if field else None
    if param is None and mapping.reason == "MODEL_NOT_FOUND":
        param = "model"
    return of_mapping(mapping, message, param=param, retry_after_s=retry_after_s)


def reason_of(error: grpc.aio.AioRpcError) -> str | None:
    """The reason that the service gave, or None where the transport made the error."""
    info = error_details_pb2.ErrorInfo()
    return next((info.reason for detail in _details(error) if detail.Unpack(info)), None)


def _details(error: grpc.aio.AioRpcError) -> list[any_pb2.Any]:
    try:
        status = rpc_status.from_call(error)
    except (ValueError, DecodeError):
        return []
    return [] if status is None else list(status.details)
