"""The inference service as the adapter uses it: one channel, its calls, and what travels beside them.

Owns channel options, deadlines, metadata and the one repetition of a call that never began.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

import grpc

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import completion_service_pb2_grpc as completion_grpc
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import model_service_pb2_grpc as model_grpc
from qwenvl.limits import MAX_MESSAGE_BYTES
from rest_adapter.errors import reason_of


_SERVICE_CONFIG: Final = '{"loadBalancingConfig": [{"round_robin": {}}]}'
_OPTIONS: Final = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.service_config", _SERVICE_CONFIG),
    # A service that was restarted is found again within seconds, not minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A peer that vanished without a FIN is noticed even while a long prefill is silent.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)
_TRIES: Final = 2
_PAUSE_S: Final = 0.1
_SHORT_TIMEOUT_S: Final = 10.0
_HEALTH_TIMEOUT_S: Final = 1.5
# grpc.health.v1 in bytes, because its generated package is not among the adapter's needs:
# HealthCheckRequest{service: "readiness"} and HealthCheckResponse{status: SERVING}.
_READINESS_REQUEST: Final = b"\x0a\x09readiness"
_SERVING_RESPONSE: Final = b"\x08\x01"

_Answer = TypeVar("_Answer")
_Event = TypeVar("_Event")
_Event_co = TypeVar("_Event_co", covariant=True)
ChatEvent = chat_pb.StreamChatCompletionResponse
RawEvent = tuple[int, completion_pb.StreamCompletionResponse]
"""Which of the prompts of a request, from 0, and what happened to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """What the service learns about who asks.

    Attributes:
        request_id: For the logs of both sides.
        authorization: The caller's `Authorization` header, which the service checks again.
        traceparent: W3C trace context.
    """

    request_id: str
    authorization: str | None = None
    traceparent: str | None = None

    def metadata(self) -> grpc.aio.Metadata:
        """The gRPC metadata of a call."""
        pairs = [("x-request-id", self.request_id)]
        if self.authorization is not None:
            pairs.append(("authorization", self.authorization))
        if self.traceparent is not None:
            pairs.append(("traceparent", self.traceparent))
        return grpc.aio.Metadata(*pairs)


class Events(Protocol[_Event_co]):
    """An answer piece by piece; the first event has been received already."""

    def __aiter__(self) -> AsyncIterator[_Event_co]:
        """Yields all events, the first included."""
        ...

    def cancel(self) -> None:
        """Stops the work, if there is any left."""
        ...


class _ReceivedEvents(Generic[_Event]):
    def __init__(self, call: grpc.aio.UnaryStreamCall[Any, _Event], first: _Event) -> None:
        self._call = call
        self._first = first

    async def __aiter__(self) -> AsyncIterator[_Event]:
        yield self._first
        async for event in self._call:
            yield event

    def cancel(self) -> None:
        self._call.cancel()


class _RawEvents:
    """The events of several prompts, one prompt after the other; all of them are worked on at once."""

    def __init__(self, streams: Sequence[Events[completion_pb.StreamCompletionResponse]]) -> None:
        self._streams = streams

    async def __aiter__(self) -> AsyncIterator[RawEvent]:
        for index, stream in enumerate(self._streams):
            async for event in stream:
                yield index, event

    def cancel(self) -> None:
        for stream in self._streams:
            stream.cancel()


class Backend:
    """The calls of the inference service; needs a running event loop.

    All methods raise `grpc.aio.AioRpcError`. Cancelling a method cancels its call.
    """

    def __init__(self, target: str, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        self._chat = chat_grpc.ChatServiceStub(self._channel)
        self._raw = completion_grpc.CompletionServiceStub(self._channel)
        self._models = model_grpc.ModelServiceStub(self._channel)
        self._health: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            "/grpc.health.v1.Health/Check"
        )

    async def create(
        self, spec: chat_pb.ChatCompletionSpec, caller: Caller
    ) -> chat_pb.CreateChatCompletionResponse:
        """Answers in one message."""
        request = chat_pb.CreateChatCompletionRequest(spec=spec)

        async def call() -> chat_pb.CreateChatCompletionResponse:
            answer: chat_pb.CreateChatCompletionResponse = await self._chat.CreateChatCompletion(
                request, metadata=caller.metadata(), timeout=self._timeout_s
            )
            return answer

        return await _once_more(call)

    async def stream(self, spec: chat_pb.ChatCompletionSpec, caller: Caller) -> Events[ChatEvent]:
        """Begins an answer; returns when its first event is here, so that a refusal is raised at once."""
        request = chat_pb.StreamChatCompletionRequest(spec=spec)
        return await self._begin(self._chat.StreamChatCompletion, request, caller)

    async def create_raw(
        self, specs: Sequence[completion_pb.CompletionSpec], caller: Caller
    ) -> list[completion_pb.CreateCompletionResponse]:
        """Continues several prompts at once; the first that fails ends all."""

        async def one(
            spec: completion_pb.CompletionSpec,
        ) -> completion_pb.CreateCompletionResponse:
            request = completion_pb.CreateCompletionRequest(spec=spec)

            async def call() -> completion_pb.CreateCompletionResponse:
                answer: completion_pb.CreateCompletionResponse = await self._raw.CreateCompletion(
                    request, metadata=caller.metadata(), timeout=self._timeout_s
                )
                return answer

            return await _once_more(call)

        return await _all([asyncio.create_task(one(spec)) for spec in specs])

    async def stream_raw(
        self, specs: Sequence[completion_pb.CompletionSpec], caller: Caller
    ) -> Events[RawEvent]:
        """Begins to continue several prompts; returns when the first event of each is here."""
        requests = [completion_pb.StreamCompletionRequest(spec=spec) for spec in specs]
        tasks = [
            asyncio.create_task(self._begin(self._raw.StreamCompletion, request, caller))
            for request in requests
        ]
        try:
            return _RawEvents(await _all(tasks))
        except BaseException:
            for task in tasks:
                if not task.cancelled() and task.exception() is None:
                    task.result().cancel()
            raise

    async def _begin(
        self,
        method: Callable[..., grpc.aio.UnaryStreamCall[Any, _Event]],
        request: object,
        caller: Caller,
    ) -> Events[_Event]:
        async def call() -> Events[_Event]:
            stream = method(request, metadata=caller.metadata(), timeout=self._timeout_s)
            async for first in stream:
                return _ReceivedEvents(stream, first)
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.INTERNAL,
                grpc.aio.Metadata(),
                grpc.aio.Metadata(),
                details="the stream ended before it began",
            )

        return await _once_more(call)

    async def list_models(self, caller: Caller) -> list[model_pb.Model]:
        """All served names."""
        request = model_pb.ListModelsRequest()

        async def call() -> list[model_pb.Model]:
            answer = await self._models.ListModels(
                request, metadata=caller.metadata(), timeout=_SHORT_TIMEOUT_S
            )
            return list(answer.models)

        return await _once_more(call)

    async def get_model(self, name: str, caller: Caller) -> model_pb.Model:
        """One served name."""
        request = model_pb.GetModelRequest(name=name)

        async def call() -> model_pb.Model:
            answer: model_pb.GetModelResponse = await self._models.GetModel(
                request, metadata=caller.metadata(), timeout=_SHORT_TIMEOUT_S
            )
            return answer.model

        return await _once_more(call)

    async def ready(self) -> bool:
        """Whether the service says that it can answer."""
        try:
            answer = await self._health(_READINESS_REQUEST, timeout=_HEALTH_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer == _SERVING_RESPONSE)

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()


async def _once_more(call: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """Makes a call, and makes it again if another replica may answer and nothing was received.

    A service that says why it is unavailable is believed, unless it is shutting down: a request that kills engines
    must not be carried to the next one.
    """
    for _ in range(_TRIES - 1):
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            unavailable = error.code() is grpc.StatusCode.UNAVAILABLE
            if not unavailable or reason_of(error) not in (None, "DRAINING"):
                raise
        await asyncio.sleep(_PAUSE_S)
    return await call()


async def _all(tasks: Sequence[asyncio.Task[_Answer]]) -> list[_Answer]:
    """All results; when one fails, or the caller is cancelled, the others are cancelled and waited for."""
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
