"""Requests in few words, and errors taken apart."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from google.rpc import error_details_pb2
import grpc
import grpc.aio
from grpc_status import rpc_status
import pytest

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import sampling_pb2 as sampling_pb


def text_part(text: str) -> message_pb.Part:
    return message_pb.Part(text=text)


def image_part(data: bytes, **fields: Any) -> message_pb.Part:
    return message_pb.Part(image=message_pb.Image(data=data, **fields))


def user(*parts: str | message_pb.Part) -> message_pb.Message:
    return message_pb.Message(
        role=message_pb.ROLE_USER,
        parts=[text_part(part) if isinstance(part, str) else part for part in parts],
    )


def spec_of(
    *parts: str | message_pb.Part, sampling: dict[str, Any] | None = None, **fields: Any
) -> chat_pb.ChatCompletionSpec:
    """One user's message."""
    values = {"model": "echo", "messages": [user(*parts)]} | fields
    return chat_pb.ChatCompletionSpec(
        **values, sampling=sampling_pb.SamplingOptions(**({"temperature": 0} | (sampling or {})))
    )


async def read_event(stream: grpc.aio.UnaryStreamCall) -> chat_pb.StreamChatCompletionResponse:
    """The next event; there must be one."""
    event = await stream.read()
    assert isinstance(event, chat_pb.StreamChatCompletionResponse)
    return event


async def read_rest(stream: grpc.aio.UnaryStreamCall) -> list[chat_pb.StreamChatCompletionResponse]:
    """The events to the end."""
    events = []
    while (event := await stream.read()) is not grpc.aio.EOF:
        assert isinstance(event, chat_pb.StreamChatCompletionResponse)
        events.append(event)
    return events


@dataclass(frozen=True)
class Refusal:
    """A failed call, taken apart."""

    code: grpc.StatusCode
    message: str
    info: error_details_pb2.ErrorInfo
    field: str
    retry_after_s: float | None
    resource: str
    request_id: str
    client_request_id: str


async def refusal(call: Awaitable[object]) -> Refusal:
    """Awaits a call that must fail with details; every kind of detail comes at most once (AIP-193)."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    status = rpc_status.from_call(_Parts(error))
    assert status is not None, error
    kinds = [detail.TypeName() for detail in status.details]
    assert len(set(kinds)) == len(kinds)
    info, bad, retry, resource, request = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
        error_details_pb2.ResourceInfo(),
        error_details_pb2.RequestInfo(),
    )
    for detail in status.details:
        assert any(detail.Unpack(into) for into in (info, bad, retry, resource, request)), detail
    fields = [violation.field for violation in bad.field_violations]
    waits = retry.retry_delay.ToTimedelta().total_seconds()
    return Refusal(
        error.code(),
        error.details() or "",
        info,
        fields[0] if fields else "",
        waits if "google.rpc.RetryInfo" in kinds else None,
        resource.resource_name,
        request.request_id,
        request.serving_data,
    )


class _Parts:
    """What `rpc_status.from_call` reads of a call."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self._error = error

    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return tuple(self._error.trailing_metadata())

    def code(self) -> grpc.StatusCode:
        return self._error.code()

    def details(self) -> str | None:
        return self._error.details()


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something to become true."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nobody could set an event
            await asyncio.sleep(0.005)
