"""Errors of the clients: one class for each kind, with everything the service said, in one piece through a pickle."""

from __future__ import annotations

import pickle

from google.rpc import error_details_pb2, status_pb2
import grpc
import pytest

import qwenvl
from qwenvl import Error
from qwenvl.errors import BY_REASON, DOMAIN, mapping_for
from qwenvl.exceptions import InternalError, InvalidRequestError
from qwenvl.status_details import TRAILER, Details, read_details, write_details


CLASSES = {
    "INVALID_ARGUMENT": "InvalidRequestError",
    "UNSUPPORTED_PARAMETER": "InvalidRequestError",
    "INVALID_IMAGE": "ImageError",
    "IMAGE_URL_REFUSED": "ImageError",
    "CONTEXT_LENGTH_EXCEEDED": "ContextLengthError",
    "MESSAGE_TOO_LARGE": "RequestTooLargeError",
    "UNAUTHENTICATED": "AuthenticationError",
    "PERMISSION_DENIED": "PermissionDeniedError",
    "MODEL_NOT_FOUND": "ModelNotFoundError",
    "REQUEST_ID_IN_USE": "ConflictError",
    "QUEUE_FULL": "RateLimitError",
    "ABORTED": "AbortedError",
    "INTERNAL": "InternalError",
    "MODEL_LOADING": "UnavailableError",
    "GPU_OUT_OF_MEMORY": "UnavailableError",
    "DEADLINE_EXCEEDED": "DeadlineExceededError",
}


def failed(code: grpc.StatusCode, status: bytes = b"") -> grpc.aio.AioRpcError:
    trailers = grpc.aio.Metadata(*([(TRAILER, status)] if status else []))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, details="It is so.")


@pytest.mark.parametrize("reason", sorted(BY_REASON))
def test_every_reason_has_a_class(reason: str) -> None:
    row = BY_REASON[reason]
    details = Details(
        reason=reason,
        domain=DOMAIN,
        metadata={"limit": "8"},
        field="spec.n",
        retry_after_s=2.5,
        request_id="r1",
    )
    status = write_details(row.grpc_code.value[0], "It is so.", details)
    error = Error.from_rpc(failed(row.grpc_code, status))
    assert type(error) is not Error
    assert isinstance(error, InvalidRequestError) == (row.http_status in {400, 413, 422})
    assert type(error).__name__ == CLASSES.get(reason, type(error).__name__)
    for same in (error, pickle.loads(pickle.dumps(error))):
        assert type(same) is type(error)
        assert str(same) == f"{row.grpc_code.name}: It is so."
        assert (same.code, same.message, same.reason) == (row.grpc_code, "It is so.", reason)
        assert (same.field, same.retry_after, same.request_id) == ("spec.n", 2.5, "r1")
        assert (same.metadata, same.status) == ({"limit": "8"}, status)


@pytest.mark.parametrize("code", list(grpc.StatusCode), ids=lambda code: code.name)
def test_errors_of_the_transport(code: grpc.StatusCode) -> None:
    error = Error.from_rpc(failed(code))
    assert (error.reason, error.field, error.retry_after, error.request_id) == ("", "", None, "")
    is_of_the_service = mapping_for(code).http_status >= 500
    assert is_of_the_service != isinstance(error, (InvalidRequestError, *_refusals()))
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.code) == (type(error), code)


def _refusals() -> tuple[type[Error], ...]:
    names = ("Authentication", "PermissionDenied", "ModelNotFound", "Conflict", "Aborted")
    return tuple(getattr(qwenvl, f"{name}Error") for name in names)


def test_an_error_with_notes_and_a_cause_can_be_pickled() -> None:
    error = InternalError(grpc.StatusCode.INTERNAL, "x")
    error.add_note("while testing")
    error.__cause__ = ValueError("y")
    assert pickle.loads(pickle.dumps(error)).message == "x"


def test_details_are_those_of_google_rpc() -> None:
    """In both directions, beside the generated package."""
    details = Details(
        reason="QUEUE_FULL",
        domain=DOMAIN,
        metadata={"a": "1", "b": "é"},
        field="spec.n",
        retry_after_s=1.25,
        request_id="r",
    )
    status = status_pb2.Status.FromString(write_details(8, "full", details))
    assert (status.code, status.message) == (8, "full")
    info, bad, retry, request = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
        error_details_pb2.RequestInfo(),
    )
    for packed, into in zip(status.details, (info, bad, retry, request), strict=True):
        assert packed.Unpack(into)
    assert (info.reason, info.domain, info.metadata) == ("QUEUE_FULL", DOMAIN, details.metadata)
    assert bad.field_violations[0].field == "spec.n"
    assert retry.retry_delay.ToMilliseconds() == 1250
    assert request.request_id == "r"
    assert read_details(status.SerializeToString()) == details


@pytest.mark.parametrize("status", [b"\xff\xff\xff", b"\x1a\x02\x0a\x00", b"x" * 50])
def test_malformed_and_unknown_details_are_ignored(status: bytes) -> None:
    assert read_details(status) == Details()
    other = status_pb2.Status()
    other.details.add().Pack(error_details_pb2.Help())
    assert read_details(other.SerializeToString()) == Details()


@pytest.mark.parametrize("words", ["Deadline Exceeded", "Stream removed (Deadline Exceeded)"])
def test_a_deadline_of_which_grpc_says_nothing_is_explained(words: str) -> None:
    code = grpc.StatusCode.DEADLINE_EXCEEDED
    trailers = grpc.aio.Metadata()
    error = Error.from_rpc(grpc.aio.AioRpcError(code, trailers, trailers, details=words))
    assert "within timeout_s" in error.message
