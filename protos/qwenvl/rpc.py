"""Channel options, retries and the reading of errors, for connections to the service.

Shared by the synchronous and the asyncio client.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from dataclasses import dataclass
import json
from typing import Any, Final

from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
import grpc
from grpc_status import rpc_status

from qwenvl.limits import MAX_MESSAGE_BYTES


DEFAULT_TIMEOUT_S: Final = 600.0

_ROUND_ROBIN: Final[Mapping[str, Any]] = {"loadBalancingConfig": [{"round_robin": {}}]}
# gRPC itself stops retrying once a response has begun (gRPC A6).
_RETRY_UNAVAILABLE: Final[Mapping[str, Any]] = {
    "methodConfig": [
        {
            "name": [
                {"service": "qwenvl.inference.v1.ChatService"},
                {"service": "qwenvl.inference.v1.CompletionService"},
            ],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


def channel_options(*, retry_unavailable: bool) -> list[tuple[str, str | int]]:
    """The options of a channel to the service.

    Args:
        retry_unavailable: Let gRPC retry calls that fail with UNAVAILABLE for any reason before the response begins:
            4 attempts in about two seconds.
    """
    service_config = {**_ROUND_ROBIN, **(_RETRY_UNAVAILABLE if retry_unavailable else {})}
    return [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.service_config", json.dumps(service_config)),
        # Reconnect to a restarted service within seconds, not minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # Detect a peer that vanished without a FIN, even during a long prefill without messages.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),  # the longer one of the two counts
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcFailure:
    """Why a call failed.

    Attributes:
        code: Status of the call.
        message: Text of the status.
        reason: `ErrorInfo.reason`, a key of `qwenvl.errors.BY_REASON`; None for an error of the transport.
        field: Path of the invalid field (`spec.sampling.top_p`), or empty.
        retry_after_s: Seconds after which a retry may succeed, from the service; None = not given.
        metadata: `ErrorInfo.metadata`.
    """

    code: grpc.StatusCode
    message: str
    reason: str | None = None
    field: str = ""
    retry_after_s: float | None = None
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def is_worth_another_replica(self) -> bool:
        """Whether another replica may answer: no service was reached, or the service is shutting down.

        Calls with another reason are not repeated: a request that crashes an engine must not reach the next one.
        """
        return self.code is grpc.StatusCode.UNAVAILABLE and self.reason in (None, "DRAINING")


def read_error(error: grpc.RpcError) -> RpcFailure:
    """Reads the status and the `google.rpc` details of a failed call; malformed details are ignored."""
    values: dict[str, Any] = {}
    for detail in _details(error):
        info = error_details_pb2.ErrorInfo()
        request = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            values |= {"reason": info.reason, "metadata": dict(info.metadata)}
        elif detail.Unpack(request) and request.field_violations:
            values["field"] = request.field_violations[0].field
        elif detail.Unpack(retry):
            values["retry_after_s"] = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    return RpcFailure(code=error.code(), message=error.details() or "", **values)


def _details(error: grpc.RpcError) -> list[any_pb2.Any]:
    try:
        status = rpc_status.from_call(error)
    except (ValueError, DecodeError):
        return []
    return [] if status is None else list(status.details)
