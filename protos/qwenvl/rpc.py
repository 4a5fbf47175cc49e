"""Channel options, retries and the reading of errors, for connections to the service.

Shared by the synchronous and the asyncio client.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from dataclasses import dataclass
import json
import numbers
from typing import Any, Final

import grpc

from qwenvl.limits import MAX_MESSAGE_BYTES
from qwenvl.status_details import TRAILER, read_details


DEFAULT_TIMEOUT_S: Final = 600.0

_NO_DEADLINE_S: Final = 100_000_000.0
"""Three years. gRPC counts nanoseconds: a call with a deadline far beyond this one ends at once."""
_FRAMING_BYTES: Final = 2**20
"""More than the metadata and the frames of a request take beside its message."""

_ROUND_ROBIN: Final[Mapping[str, Any]] = {"loadBalancingConfig": [{"round_robin": {}}]}
# For every method but health checks, whose callers want to know. gRPC itself stops retrying once a response has begun
# (gRPC A6), at the call's deadline, and where the service forbids it, see `NOT_REPEATED`.
_RETRIES: Final[Mapping[str, Any]] = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        },
        {"name": [{"service": "grpc.health.v1.Health"}]},
    ]
}


SERVICE_CONFIG: Final[Mapping[str, Any]] = {**_ROUND_ROBIN, **_RETRIES}
"""The service config (gRPC A6) of the typed clients, for channels of other programs and languages.

gRPC has no way in which a server itself publishes it; a TXT record of the service's name may (gRPC A2).
"""

NOT_REPEATED: Final = (("grpc-retry-pushback-ms", "-1"),)
"""The trailers by which a server keeps gRPC from repeating a call (gRPC A6, pushback).

A request that was in flight when an engine failed may be what failed it: its caller, not a retry policy, decides
whether it reaches another engine.
"""


def channel_options(*, retry_unavailable: bool) -> list[tuple[str, str | int]]:
    """The options of a channel to the service.

    Args:
        retry_unavailable: Let gRPC retry calls that fail with UNAVAILABLE for any reason before the response begins:
            4 attempts in about two seconds.
    """
    service_config = SERVICE_CONFIG if retry_unavailable else _ROUND_ROBIN
    return [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.service_config", json.dumps(service_config)),
        # gRPC keeps a request for its retries, by default only up to 256 KiB, which is less than most images.
        ("grpc.per_rpc_retry_buffer_size", MAX_MESSAGE_BYTES + _FRAMING_BYTES),
        # `http_proxy` is set for traffic to the internet; the service is on this machine or in this cluster.
        ("grpc.enable_http_proxy", 0),
        # Reconnect to a restarted service within seconds, not minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # Detect a peer that vanished without a FIN, even during a long prefill without messages.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),  # the longer one of the two counts
    ]


def call_timeout(timeout_s: float | None) -> float | None:
    """The timeout that gRPC takes; None = no deadline.

    Raises:
        TypeError: It is not a number.
        ValueError: It is not a positive number.
    """
    if timeout_s is None:
        return None
    _check_number(timeout_s)
    if timeout_s > _NO_DEADLINE_S:
        return None
    if not timeout_s > 0:
        raise ValueError(f"timeout_s is {timeout_s}, but must be above 0 (None = no deadline)")
    return float(timeout_s)


def _check_number(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        kind = type(value).__name__
        raise TypeError(f"timeout_s is a number of seconds or None, not {kind}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcFailure:
    """Why a call failed.

    Attributes:
        code: Status of the call.
        message: Text of the status.
        reason: `ErrorInfo.reason`, a key of `qwenvl.errors.BY_REASON`; None for an error of the transport.
        field: Path of the invalid field (`spec.sampling.top_p`), or empty.
        retry_after_s: Seconds after which a retry may succeed, from the service; None = not given.
        request_id: The request's id in the logs of the service; empty for an error of the transport.
        metadata: `ErrorInfo.metadata`.
        status: The serialised `google.rpc.Status` with all details; empty for an error of the transport.
    """

    code: grpc.StatusCode
    message: str
    reason: str | None = None
    field: str = ""
    retry_after_s: float | None = None
    request_id: str = ""
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    status: bytes = b""

    @property
    def is_worth_another_replica(self) -> bool:
        """Whether another replica may answer: no service was reached, or the service is shutting down.

        Calls with another reason are not repeated: a request that crashes an engine must not reach the next one.
        """
        return self.code is grpc.StatusCode.UNAVAILABLE and self.reason in (None, "DRAINING")


def read_error(error: grpc.RpcError) -> RpcFailure:
    """Reads the status and the `google.rpc` details of a failed call; malformed details are ignored.

    A proxy in front of the service ends a stream whose replica is gone with RST_STREAM, which gRPC takes for INTERNAL.
    The service itself never does: its errors have details. Such a stream is what a lost connection is: UNAVAILABLE.
    """
    trailers: Any = error.trailing_metadata() or ()  # pairs; the stubs of grpc do not say so
    status: str | bytes = next((value for key, value in trailers if key == TRAILER), b"")
    status = status.encode() if isinstance(status, str) else status
    details = read_details(status)
    code, message = error.code(), error.details() or ""
    if code is grpc.StatusCode.INTERNAL and details.reason is None and "RST_STREAM" in message:
        code = grpc.StatusCode.UNAVAILABLE
    return RpcFailure(
        code=code,
        message=message,
        reason=details.reason,
        field=details.field,
        retry_after_s=details.retry_after_s,
        request_id=details.request_id,
        metadata=details.metadata,
        status=status,
    )
