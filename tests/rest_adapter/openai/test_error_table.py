"""Every row of the error table, from the gRPC status to the HTTP answer."""

from __future__ import annotations

from google.rpc import status_pb2
import grpc
import pytest
import requests

from qwenvl.errors import BY_REASON
from rest_adapter.errors import from_rpc
from rest_adapter.openai.errors import type_and_code
from tests.rest_adapter.conftest import Adapter, open_adapter
from tests.rest_adapter.fake_service import details_of


def rpc_error(
    code: grpc.StatusCode, *trailers: tuple[str, bytes], text: str = "at 10.0.0.1:50051"
) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details=text
    )


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("reason", BY_REASON)
def test_every_reason_has_its_status_and_error_body(
    adapter: Adapter, reason: str, stream: bool
) -> None:
    row = BY_REASON[reason]
    response = adapter.ask(f"fail {reason}", stream=stream)
    assert response.status_code == row.http_status
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "request_id"}
    assert (error["type"], error["code"]) == (row.openai_type, row.openai_code)
    challenge = response.headers.get("www-authenticate")
    assert challenge == ("Bearer" if row.http_status == 401 else None)
    if row.http_status != 500:
        hint = " (context_length_exceeded)" if reason == "CONTEXT_LENGTH_EXCEEDED" else ""
        assert error["message"] == f"It is {reason}.{hint}"
        assert error["param"] == "temperature"
    if row.retry:
        assert response.headers["retry-after"] == "3"
        assert response.headers.get("x-should-retry") != "false"
    elif row.http_status == 409 or row.http_status >= 500:
        assert response.headers["x-should-retry"] == "false"
        assert "retry-after" not in response.headers


def test_an_internal_error_discloses_nothing(adapter: Adapter) -> None:
    response = adapter.ask("fail INTERNAL")
    assert "It is" not in response.text
    assert response.headers["x-request-id"]


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.value[0]])
def test_transport_error_never_shows_an_address(code: grpc.StatusCode) -> None:
    error = from_rpc(rpc_error(code))
    assert 400 <= error.status <= 599
    if code in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.UNIMPLEMENTED,
    ):
        assert "10.0.0.1" not in error.message


def test_reason_decides_before_the_code() -> None:
    """One code stands for several statuses."""
    packed = details_of("IMAGE_URL_REFUSED")
    status = status_pb2.Status(code=7, message="It may not.", details=packed).SerializeToString()
    trailer = ("grpc-status-details-bin", status)
    error = from_rpc(rpc_error(grpc.StatusCode.PERMISSION_DENIED, trailer, text="It may not."))
    assert (error.status, type_and_code(error)[1]) == (400, "invalid_image_url")
    assert from_rpc(rpc_error(grpc.StatusCode.PERMISSION_DENIED)).status == 403


def test_broken_details_are_survived() -> None:
    trailer = ("grpc-status-details-bin", b"\xff\xff\xff")
    error = from_rpc(rpc_error(grpc.StatusCode.UNAVAILABLE, trailer))
    assert error.status == 503


@pytest.mark.parametrize("stream", [True, False])
def test_service_that_was_not_there_is_tried_again(adapter: Adapter, stream: bool) -> None:
    response = adapter.ask("unreachable 1", stream=stream)
    assert response.status_code == 200
    assert adapter.seen.calls == 2


@pytest.mark.parametrize("stream", [True, False])
def test_request_that_killed_an_engine_is_not_carried_to_the_next(
    adapter: Adapter, stream: bool
) -> None:
    assert adapter.ask("fail ENGINE_UNAVAILABLE", stream=stream).status_code == 503
    assert adapter.seen.calls == 1


def test_service_that_is_not_there() -> None:
    # Port 1 of the loopback address: nobody listens there.
    with open_adapter(grpc_target="127.0.0.1:1") as adapter:
        response = adapter.ask()
        assert response.status_code == 503
        assert response.headers["retry-after"]
        assert "127.0.0.1" not in response.text
        assert requests.get(f"{adapter.url}/health", timeout=10).status_code == 200
        assert requests.get(f"{adapter.url}/ready", timeout=10).status_code == 503


def test_deadline() -> None:
    with open_adapter(request_timeout_s=0.3) as adapter:
        response = adapter.ask("hang")
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "timeout"
        streamed = adapter.ask("hang", stream=True)
        assert '"timeout"' in streamed.text
        assert "[DONE]" not in streamed.text
