"""What both clients know of a connection: its target, its key, and how to wait until the service is ready."""

from __future__ import annotations

import os
import time
from typing import Final

import grpc

from qwenvl.addresses import check_target
from qwenvl.exceptions import AbortedError, DeadlineExceededError, Error
from qwenvl.rpc import call_timeout


DEFAULT_TARGET: Final = "127.0.0.1:50051"
PAUSE_S: Final = 0.1
"""Between two questions whether the service is ready."""

# grpc.health.v1 as bytes, because its generated package is not a dependency of the client:
# HealthCheckRequest{service: "readiness"} and HealthCheckResponse{status: SERVING}.
HEALTH_CHECK: Final = "/grpc.health.v1.Health/Check"
READINESS_REQUEST: Final = b"\x0a\x09readiness"
SERVING_RESPONSE: Final = b"\x08\x01"

_ATTEMPT_S: Final = 2.0
_WORTH_WAITING: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)


def target_of(target: str | None) -> str:
    """The target of a client: as given, or of the environment (`QWENVL_GRPC_TARGET`), or the service's default.

    Raises:
        TypeError: It is not a text.
        ValueError: gRPC would call another port, or none.
    """
    if not isinstance(target, str | None):
        raise TypeError(f"target is a text such as {DEFAULT_TARGET!r}, not {type(target).__name__}")
    name, chosen = "target", (target or "").strip()
    if not chosen:
        name, chosen = "QWENVL_GRPC_TARGET", os.environ.get("QWENVL_GRPC_TARGET", "").strip()
    try:
        check_target(chosen or DEFAULT_TARGET)
    except ValueError as error:
        raise ValueError(f"{name} is {chosen!r}, but {error}") from None
    return chosen or DEFAULT_TARGET


def metadata_of(api_key: str | None) -> tuple[tuple[str, str], ...]:
    """The metadata of every call.

    Args:
        api_key: The key; None = that of the environment (`QWENVL_API_KEY`), empty = none.

    Raises:
        TypeError: The key is not a text.
        ValueError: The key cannot be sent.
    """
    if not isinstance(api_key, str | None):
        raise TypeError(f"api_key is a text or None, not {type(api_key).__name__}")
    key = (os.environ.get("QWENVL_API_KEY", "") if api_key is None else api_key).strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError("the API key contains characters other than printable ASCII")
    return (("authorization", f"Bearer {key}"),) if key else ()


def closed_error(client: object) -> RuntimeError:
    """The error for the use of a client that is closed."""
    return RuntimeError(f"this {type(client).__name__} is closed: create another one")


def ended_by_close(problem: Error) -> Error:
    """The error of a call that failed while its client was closed."""
    if problem.code is not grpc.StatusCode.CANCELLED:
        return problem
    return AbortedError(problem.code, "the client was closed while this call was running")


class ReadinessWait:
    """One wait for the service to be ready; the caller asks, pauses and asks again.

    Args:
        target: The target, for the message.
        timeout_s: When to give up.

    Raises:
        ValueError: The timeout is not a positive number.
    """

    def __init__(self, target: str, timeout_s: float | None) -> None:
        timeout_s = call_timeout(timeout_s)
        self._target = target
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._problem = ""
        self._is_cut = False

    def next_attempt_s(self) -> float:
        """The timeout of the next question, in seconds.

        Raises:
            DeadlineExceededError: The time is over.
        """
        if self._deadline is None:
            return _ATTEMPT_S
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceededError(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"the service at {self._target} was not ready within {self._timeout_s:g} s: "
                f"{self._problem or 'it has not answered'}",
            )
        self._is_cut = left_s < _ATTEMPT_S
        return min(left_s, _ATTEMPT_S)

    def is_over(self, response: bytes) -> bool:
        """Whether the service says that it is ready."""
        self._problem = "it reports that it is not ready"
        return response == SERVING_RESPONSE

    def failed(self, error: grpc.RpcError) -> None:
        """Notes why a question failed.

        Raises:
            Error: Waiting does not help: what listens there is no inference service.
        """
        problem = Error.from_rpc(error)
        if problem.code not in _WORTH_WAITING:
            raise problem from None
        if self._problem and self._is_cut and problem.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return  # the end of the wait has cut this question short: the one before says more
        self._problem = str(problem)
