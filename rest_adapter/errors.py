"""The errors of the REST door in OpenAI's shape.

Owns the error body and the way from a gRPC status with `google.rpc` details to it. Must not know routes or requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import math

from google.rpc import error_details_pb2, status_pb2
import grpc
import grpc.aio
import orjson
from starlette.responses import Response

from qwenvl.errors import BY_REASON, DOMAIN, ErrorMapping, mapping_for


DETAILS_KEY = "grpc-status-details-bin"

_INVALID = "invalid_request_error"
# What a client reads when the transport itself made the error: its text may name addresses.
_TRANSPORT_TEXTS = {
    "MESSAGE_TOO_LARGE": "The request or the response is too large.",
    "ENGINE_UNAVAILABLE": "The inference service cannot be reached.",
    "DEADLINE_EXCEEDED": "The request took too long.",
    "ABORTED": "The request was cancelled.",
    "INTERNAL": "The server had an internal error.",
    "UNAUTHENTICATED": "A valid API key is needed.",
    "UNSUPPORTED_PARAMETER": "The inference service does not support this.",
}


class ApiError(Exception):
    """An answer in OpenAI's error shape.

    Attributes:
        status: HTTP status.
        message: What the caller reads.
        kind: `error.type`.
        code: `error.code`, or None.
        param: `error.param`: the field that is wrong, or None.
        headers: More headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = _INVALID,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """The JSON body."""
        error = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return orjson.dumps({"error": error})

    def response(self) -> Response:
        """The whole response."""
        return Response(self.body(), self.status, self.headers, media_type="application/json")


def from_reason(
    reason: str, message: str, *, param: str | None = None, retry_after_s: float | None = None
) -> ApiError:
    """An error of the shared table.

    Args:
        reason: Key of `qwenvl.errors.BY_REASON`.
        message: What the caller reads.
        param: The field that is wrong, in OpenAI's names.
        retry_after_s: When to try again; only used where the table says that a retry can help.
    """
    return _from_mapping(BY_REASON[reason], message, param, retry_after_s)


def invalid(message: str, param: str | None, code: str = "invalid_value") -> ApiError:
    """A 400 for a field."""
    return ApiError(400, message, code=code, param=param)


def from_rpc(error: grpc.aio.AioRpcError, to_param: Callable[[str], str | None]) -> ApiError:
    """Translates the status of a failed call.

    Args:
        error: What the stub raised.
        to_param: Translates a path in the proto into the path in the OpenAI request.
    """
    reason: str | None = None
    param: str | None = None
    retry_after_s: float | None = None
    info = error_details_pb2.ErrorInfo()
    wrong = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in _details(error):
        if detail.Unpack(info) and info.domain == DOMAIN:
            reason = info.reason
        elif detail.Unpack(wrong) and wrong.field_violations:
            param = to_param(wrong.field_violations[0].field)
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
    mapping = mapping_for(error.code(), reason)
    if reason is None and mapping.reason in _TRANSPORT_TEXTS:
        message = _TRANSPORT_TEXTS[mapping.reason]
    else:
        message = error.details() or _TRANSPORT_TEXTS["INTERNAL"]
    if mapping.reason == "MODEL_NOT_FOUND" and param is None:
        param = "model"
    return _from_mapping(mapping, message, param, retry_after_s)


def reason_of(error: grpc.aio.AioRpcError) -> str | None:
    """The `ErrorInfo.reason` of our own domain, or None where the transport made the error."""
    info = error_details_pb2.ErrorInfo()
    for detail in _details(error):
        if detail.Unpack(info) and info.domain == DOMAIN:
            return str(info.reason)
    return None


def _details(error: grpc.aio.AioRpcError) -> list[status_pb2.Status]:
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            status = status_pb2.Status()
            try:
                status.ParseFromString(value)
            except ValueError:  # DecodeError: a middle box wrote something else
                return []
            return list(status.details)
    return []


def _from_mapping(
    mapping: ErrorMapping, message: str, param: str | None, retry_after_s: float | None
) -> ApiError:
    headers = {"x-should-retry": "true" if mapping.retry else "false"}
    if mapping.retry:
        headers["retry-after"] = str(max(1, math.ceil(retry_after_s or 1.0)))
    if mapping.http_status == 401:
        headers["www-authenticate"] = "Bearer"
    return ApiError(
        mapping.http_status,
        message,
        kind=mapping.openai_type,
        code=mapping.openai_code,
        param=param,
        headers=headers,
    )
