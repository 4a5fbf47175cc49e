"""The errors that a request may end with.

ServiceError
├── InvalidArgumentError        a field is invalid; names the field
│   ├── InvalidImageError       not an image, or one that cannot be decoded
│   ├── ImageTooLargeError      more pixels or bytes than allowed
│   ├── TooManyImagesError
│   ├── InvalidImageUrlError    not a URL that can be fetched
│   ├── ImageUrlRefusedError    the media policy does not allow it
│   ├── ImageFetchError         the remote side failed
│   ├── ImageFetchTimeoutError
│   ├── ContextLengthError      prompt and answer do not fit the context
│   ├── ConstraintFailedError   the form of an answer cannot be followed any further
│   └── UnsupportedParameterError
├── UnauthenticatedError
├── PermissionDeniedError
├── ModelNotFoundError
├── RequestIdInUseError
├── QueueFullError
├── RateLimitError
├── AbortedError
├── EngineUnavailableError      the engine process failed or is starting
├── ModelLoadingError
├── DrainingError
├── OutOfMemoryError
├── DeadlineError
└── InternalError

Messages never include the text of a parser, which may leak addresses (CVE-2026-22778); but what the compiler of
grammars says about a caller's own constraint is told, without addresses.
"""

from __future__ import annotations

from typing import ClassVar, Final


class ServiceError(Exception):
    """Base of all errors that are reported to callers.

    Attributes:
        reason: Key into `qwenvl.errors.BY_REASON`.
        message: The message for the caller.
        field: Path of the offending field in the request's proto (`spec.messages[0].parts[1].image`), or empty.
        metadata: The values in the message, machine-readable (AIP-193).
        retry_after_s: Seconds after which a retry may succeed, if any.
        repeatable: A retry policy may send the request again unasked. Not if it may be what an engine failed on.
    """

    reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        metadata: dict[str, str] | None = None,
        retry_after_s: float | None = None,
        repeatable: bool = True,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.metadata = metadata or {}
        self.retry_after_s = retry_after_s
        self.repeatable = repeatable


class InvalidArgumentError(ServiceError):
    """A field is invalid."""

    reason = "INVALID_ARGUMENT"


class InvalidImageError(InvalidArgumentError):
    """The bytes are not an image, or the image cannot be decoded."""

    reason = "INVALID_IMAGE"


class ImageTooLargeError(InvalidArgumentError):
    """The image has more pixels or bytes than allowed."""

    reason = "IMAGE_TOO_LARGE"


class TooManyImagesError(InvalidArgumentError):
    """More images than one request may have."""

    reason = "TOO_MANY_IMAGES"


class InvalidImageUrlError(InvalidArgumentError):
    """The text is not a URL that can be fetched."""

    reason = "INVALID_IMAGE_URL"


class ImageUrlRefusedError(InvalidArgumentError):
    """The media policy does not allow the URL."""

    reason = "IMAGE_URL_REFUSED"


class ImageFetchError(InvalidArgumentError):
    """The remote server failed or did not send an image."""

    reason = "IMAGE_FETCH_FAILED"


class ImageFetchTimeoutError(InvalidArgumentError):
    """The remote server was too slow."""

    reason = "IMAGE_FETCH_TIMEOUT"


class ContextLengthError(InvalidArgumentError):
    """Prompt and answer do not fit the context window."""

    reason = "CONTEXT_LENGTH_EXCEEDED"


class ConstraintFailedError(InvalidArgumentError):
    """The answer cannot be continued in the form that the constraint asks for."""

    reason = "CONSTRAINT_FAILED"


class UnsupportedParameterError(InvalidArgumentError):
    """A known parameter that this service or model does not support."""

    reason = "UNSUPPORTED_PARAMETER"


class UnauthenticatedError(ServiceError):
    """The API key is missing or unknown."""

    reason = "UNAUTHENTICATED"


class PermissionDeniedError(ServiceError):
    """The caller is not allowed to do this."""

    reason = "PERMISSION_DENIED"


class ModelNotFoundError(ServiceError):
    """No served model has this name."""

    reason = "MODEL_NOT_FOUND"


class RequestIdInUseError(ServiceError):
    """A request with this id is in flight."""

    reason = "REQUEST_ID_IN_USE"


class QueueFullError(ServiceError):
    """The maximum number of requests is in flight."""

    reason = "QUEUE_FULL"


class RateLimitError(ServiceError):
    """The caller has used up what it may use in a minute."""

    reason = "RATE_LIMIT_EXCEEDED"


class AbortedError(ServiceError):
    """The request was ended by AdminService.Abort."""

    reason = "ABORTED"


class EngineUnavailableError(ServiceError):
    """The engine process failed or is starting."""

    reason = "ENGINE_UNAVAILABLE"


class ModelLoadingError(ServiceError):
    """The model is not loaded yet."""

    reason = "MODEL_LOADING"


class DrainingError(ServiceError):
    """The service is shutting down and accepts no new requests."""

    reason = "DRAINING"


class OutOfMemoryError(ServiceError):
    """The device had no memory for this request."""

    reason = "GPU_OUT_OF_MEMORY"


class DeadlineError(ServiceError):
    """The caller's deadline has passed."""

    reason = "DEADLINE_EXCEEDED"


class InternalError(ServiceError):
    """A defect of the service."""

    reason = "INTERNAL"


def _by_reason(base: type[ServiceError]) -> dict[str, type[ServiceError]]:
    found = {base.reason: base}
    for kind in base.__subclasses__():
        found |= _by_reason(kind)
    return found


ERRORS_BY_REASON: Final = _by_reason(ServiceError)
"""The class of every reason."""
