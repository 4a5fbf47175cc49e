"""Converts a `ServiceError` to a gRPC status with `google.rpc` details."""

from __future__ import annotations

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
import grpc

from inference_service.errors import ModelNotFoundError, ServiceError
from qwenvl.errors import BY_REASON, DOMAIN
from qwenvl.observability import CallContext


DETAILS_KEY = "grpc-status-details-bin"


def code_of(error: ServiceError) -> grpc.StatusCode:
    """The gRPC code of an error."""
    return BY_REASON[error.reason].grpc_code


def details_of(error: ServiceError, call: CallContext) -> bytes:
    """The serialised `google.rpc.Status` for the trailer `grpc-status-details-bin` (AIP-193).

    ErrorInfo and RequestInfo are always present; BadRequest if a field is invalid, RetryInfo if a retry may succeed,
    ResourceInfo if a model is unknown. RequestInfo has the request's id, and the client's own as `serving_data`.
    """
    details: list[AnyMessage] = []

    def add(message: object) -> None:
        packed = AnyMessage()
        packed.Pack(message)  # type: ignore[arg-type]  # the stubs of google.rpc are untyped
        details.append(packed)

    add(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata))
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.message, reason=error.reason
        )
        add(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        delay = Duration()
        delay.FromMilliseconds(int(error.retry_after_s * 1000))
        add(error_details_pb2.RetryInfo(retry_delay=delay))
    if isinstance(error, ModelNotFoundError):
        name = error.metadata.get("model", "")
        add(error_details_pb2.ResourceInfo(resource_type="model", resource_name=name))
    info = error_details_pb2.RequestInfo(
        request_id=call.request_id, serving_data=call.client_request_id or ""
    )
    add(info)
    status = status_pb2.Status(code=code_of(error).value[0], message=error.message, details=details)
    return bytes(status.SerializeToString())
