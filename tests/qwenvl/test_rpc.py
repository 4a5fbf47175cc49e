"""Errors of gRPC as callers read them, and the options of a channel."""

from __future__ import annotations

import json
from pathlib import Path
import re

from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
import grpc
import pytest

from qwenvl import Error
from qwenvl.limits import MAX_MESSAGE_BYTES
from qwenvl.rpc import SERVICE_CONFIG, channel_options, read_error


ROOT = Path(__file__).parents[2]


def rpc_error(code: grpc.StatusCode, *details: Message, text: str = "It is so.") -> grpc.RpcError:
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    status = status_pb2.Status(code=code.value[0], message=text, details=packed)
    trailer = ("grpc-status-details-bin", status.SerializeToString())
    trailers = grpc.aio.Metadata(*([trailer] if details else []))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, details=text)


INFO = error_details_pb2.ErrorInfo(reason="QUEUE_FULL", metadata={"limit": "8"})
VIOLATION = error_details_pb2.BadRequest.FieldViolation(field="spec.n")
BAD = error_details_pb2.BadRequest(field_violations=[VIOLATION])
RETRY = error_details_pb2.RetryInfo()
RETRY.retry_delay.FromMilliseconds(2500)


def test_all_details_in_any_order() -> None:
    for details in ((INFO, BAD, RETRY), (RETRY, BAD, INFO)):
        failure = read_error(rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, *details))
        assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert failure.message == "It is so."
        assert (failure.reason, failure.field, failure.retry_after_s) == (
            "QUEUE_FULL",
            "spec.n",
            2.5,
        )
        assert failure.metadata == {"limit": "8"}


def test_an_error_of_the_transport_has_no_reason() -> None:
    error = rpc_error(grpc.StatusCode.UNAVAILABLE)
    failure = read_error(error)
    assert (failure.reason, failure.field, failure.retry_after_s) == (None, "", None)
    assert not failure.metadata
    assert Error.from_rpc(error).reason == ""


def test_a_stream_that_a_proxy_resets_is_a_lost_connection() -> None:
    text = "Stream removed (RST_STREAM (Received RST_STREAM with error code 2))"
    failure = read_error(rpc_error(grpc.StatusCode.INTERNAL, text=text))
    assert failure.code is grpc.StatusCode.UNAVAILABLE
    assert failure.is_worth_another_replica
    info = error_details_pb2.ErrorInfo(reason="INTERNAL")
    for error in (
        rpc_error(grpc.StatusCode.INTERNAL, info, text=text),
        rpc_error(grpc.StatusCode.INTERNAL, text="Exception deserializing response!"),
        rpc_error(grpc.StatusCode.CANCELLED, text=text),
    ):
        assert read_error(error).code is error.code()


def test_broken_details_count_as_none() -> None:
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", b"\xff\xff\xff"))
    code = grpc.StatusCode.INTERNAL
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, details="x")
    assert read_error(error).reason is None
    assert Error.from_rpc(error).message == "x"


@pytest.mark.parametrize(
    ("code", "reason", "expected"),
    [
        (grpc.StatusCode.UNAVAILABLE, None, True),
        (grpc.StatusCode.UNAVAILABLE, "DRAINING", True),
        (grpc.StatusCode.UNAVAILABLE, "ENGINE_UNAVAILABLE", False),
        (grpc.StatusCode.UNAVAILABLE, "MODEL_LOADING", False),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, None, False),
        (grpc.StatusCode.DEADLINE_EXCEEDED, None, False),
    ],
)
def test_what_another_replica_may_answer(
    code: grpc.StatusCode, reason: str | None, expected: bool
) -> None:
    details = [error_details_pb2.ErrorInfo(reason=reason)] if reason else []
    assert read_error(rpc_error(code, *details)).is_worth_another_replica is expected


def test_the_documented_service_config_is_that_of_the_client() -> None:
    text = (ROOT / "docs" / "grpc-api.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert json.loads(block) == SERVICE_CONFIG
    config = dict(channel_options(retry_unavailable=True))["grpc.service_config"]
    assert json.loads(str(config)) == SERVICE_CONFIG


def test_channel_options() -> None:
    for retry in (True, False):
        options = dict(channel_options(retry_unavailable=retry))
        assert options["grpc.max_receive_message_length"] == MAX_MESSAGE_BYTES
        assert options["grpc.max_send_message_length"] == MAX_MESSAGE_BYTES
        config = json.loads(str(options["grpc.service_config"]))
        assert config["loadBalancingConfig"] == [{"round_robin": {}}]
        methods = config.get("methodConfig", [])
        policies = [method["retryPolicy"] for method in methods if "retryPolicy" in method]
        codes = [policy["retryableStatusCodes"] for policy in policies]
        assert codes == ([["UNAVAILABLE"]] if retry else [])
        # Tried with a peer that vanishes in tests/chaos/test_replicas.py, which takes longer.
        assert 10_000 <= int(options["grpc.keepalive_time_ms"]) <= 60_000
        for name in ("grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms"):
            assert 1_000 <= int(options[name]) <= 20_000
        assert options["grpc.enable_http_proxy"] == 0
