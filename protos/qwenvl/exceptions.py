"""What the typed clients raise: one class for each kind of failure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import functools
from typing import TYPE_CHECKING, Any, Final

import grpc

from qwenvl.errors import mapping_for
from qwenvl.rpc import RpcFailure, read_error


if TYPE_CHECKING:
    from qwenvl.answers import Answer


_LATE: Final = (
    "no complete answer within timeout_s; the service is slow, or cannot be reached"
    " (wait_until_ready says why)"
)


class Error(Exception):
    """A call failed. Errors can be pickled, so that they pass between processes.

    Attributes:
        code: Status of the call.
        message: Message of the service.
        reason: `ErrorInfo.reason`, a key of `qwenvl.errors.BY_REASON`; empty if the transport failed.
        field: Path of the invalid field (`spec.sampling.top_p`), or empty.
        retry_after: Seconds after which a retry may succeed, from the service; None = not given.
        request_id: The request's id in the logs of the service; empty if the transport failed.
        metadata: The values of the message: `ErrorInfo.metadata`.
        status: The serialised `google.rpc.Status` with all details; empty if the transport failed.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        field: str = "",
        retry_after: float | None = None,
        request_id: str = "",
        metadata: Mapping[str, str] | None = None,
        status: bytes = b"",
    ) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.reason = reason
        self.field = field
        self.retry_after = retry_after
        self.request_id = request_id
        self.metadata = dict(metadata or {})
        self.status = status

    def __reduce__(self) -> tuple[Callable[..., Error], tuple[object, ...]]:
        remake = functools.partial(
            type(self),
            reason=self.reason,
            field=self.field,
            retry_after=self.retry_after,
            request_id=self.request_id,
            metadata=self.metadata,
            status=self.status,
        )
        return remake, (self.code, self.message)

    @classmethod
    def from_rpc(cls, error: grpc.RpcError) -> Error:
        """Reads status and details of a failed call; returns the class for its kind."""
        failure = read_error(error)
        mapping = mapping_for(failure.code, failure.reason)
        status = mapping.http_status
        by_status = _BY_HTTP_STATUS.get(
            status, InvalidRequestError if status < 500 else InternalError
        )
        return _BY_REASON.get(mapping.reason, by_status)(
            failure.code,
            _LATE if _is_unexplained(failure) else failure.message,
            reason=failure.reason or "",
            field=failure.field,
            retry_after=failure.retry_after_s,
            request_id=failure.request_id,
            metadata=failure.metadata,
            status=failure.status,
        )


def _is_unexplained(failure: RpcFailure) -> bool:
    """Whether a deadline has passed of which gRPC says nothing more, in one of its two wordings."""
    is_late = failure.code is grpc.StatusCode.DEADLINE_EXCEEDED and failure.reason is None
    return is_late and "Deadline Exceeded" in failure.message


class InvalidRequestError(Error):
    """The request is wrong or asks for what is not supported; `field` says where."""


class ImageError(InvalidRequestError):
    """An image cannot be fetched or decoded, or is too large, or there are too many."""


class ContextLengthError(InvalidRequestError):
    """Prompt and answer do not fit the model's context window."""


class RequestTooLargeError(InvalidRequestError):
    """The message exceeds the maximum size, `qwenvl.limits.MAX_MESSAGE_BYTES`."""


class AuthenticationError(Error):
    """The API key is missing or unknown."""


class PermissionDeniedError(Error):
    """The caller is not allowed to do this."""


class ModelNotFoundError(Error):
    """No served model has this name."""


class ConflictError(Error):
    """A request with this `request_id` is in flight."""


class RateLimitError(Error):
    """The service has its maximum number of requests; see `retry_after`."""


class AbortedError(Error):
    """The request was ended by Abort, or the call was cancelled.

    Attributes:
        answer: What was generated until then, with `finish_reason` `aborted`; None if nothing was.
    """

    answer: Answer | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return *super().__reduce__(), {"answer": self.answer}


class InternalError(Error):
    """A defect of the service; its logs have the `request_id`."""


class UnavailableError(Error):
    """No service was reached, or it is loading, restarting or shutting down."""


class DeadlineExceededError(Error):
    """The call did not end within its timeout, connecting and retries included."""


_BY_REASON: Final[Mapping[str, type[Error]]] = {
    "INVALID_IMAGE": ImageError,
    "IMAGE_TOO_LARGE": ImageError,
    "TOO_MANY_IMAGES": ImageError,
    "INVALID_IMAGE_URL": ImageError,
    "IMAGE_URL_REFUSED": ImageError,
    "IMAGE_FETCH_FAILED": ImageError,
    "IMAGE_FETCH_TIMEOUT": ImageError,
    "CONTEXT_LENGTH_EXCEEDED": ContextLengthError,
}
_BY_HTTP_STATUS: Final[Mapping[int, type[Error]]] = {
    400: InvalidRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: ModelNotFoundError,
    409: ConflictError,
    413: RequestTooLargeError,
    422: InvalidRequestError,
    429: RateLimitError,
    499: AbortedError,
    500: InternalError,
    503: UnavailableError,
    504: DeadlineExceededError,
}
"""Every HTTP status of `qwenvl.errors`."""
