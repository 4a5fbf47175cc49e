"""Calls the inference service from asyncio with protobuf messages: channel, deadlines, retries.

`qwenvl.AsyncClient` does the same with Python values.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
import time
from typing import Any, Final, Generic, Protocol, TypeVar

from google.protobuf.message import Message
import grpc

from qwenvl.answers import ChatEvent, CompletionEvent
from qwenvl.connection import HEALTH_CHECK, READINESS_REQUEST, SERVING_RESPONSE
from qwenvl.fields import built
from qwenvl.inference.v1 import admin_service_pb2 as admin_pb
from qwenvl.inference.v1 import admin_service_pb2_grpc as admin_grpc
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import completion_service_pb2_grpc as completion_grpc
from qwenvl.inference.v1 import decision_service_pb2 as decision_pb
from qwenvl.inference.v1 import decision_service_pb2_grpc as decision_grpc
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import model_service_pb2_grpc as model_grpc
from qwenvl.inference.v1 import tokenize_service_pb2 as tokenize_pb
from qwenvl.inference.v1 import tokenize_service_pb2_grpc as tokenize_grpc
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from qwenvl.rpc import DEFAULT_TIMEOUT_S, channel_options, read_error


_PAUSE_S: Final = 0.1
_SHORT_TIMEOUT_S: Final = 10.0
_HEALTH_TIMEOUT_S: Final = 1.5
_INLINE_BYTES: Final = 2**18
"""Requests up to this size are serialised in less time than another thread would take to begin."""
# One: serialising keeps the interpreter for itself.
_SERIALISER: Final = ThreadPoolExecutor(1, thread_name_prefix="serialiser")

_Response = TypeVar("_Response")
_Event = TypeVar("_Event")
_Event_co = TypeVar("_Event_co", covariant=True)
Metadata = Sequence[tuple[str, str]]
"""The metadata of a request: `authorization`, `x-request-id`, `traceparent`."""


class Events(Protocol[_Event_co]):
    """The events of a streamed answer; the first one has already been received."""

    def __aiter__(self) -> AsyncIterator[_Event_co]:
        """Yields all events, including the first one."""
        ...

    def cancel(self) -> None:
        """Cancels the call, if it is still running."""
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


class _SerialisedRequests:
    """A channel whose stubs also take requests as bytes: large ones need not be serialised in the event loop."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def unary_unary(self, method: str, *, request_serializer: object, **options: Any) -> object:
        del request_serializer
        return self._channel.unary_unary(method, request_serializer=_as_bytes, **options)

    def unary_stream(self, method: str, *, request_serializer: object, **options: Any) -> object:
        del request_serializer
        return self._channel.unary_stream(method, request_serializer=_as_bytes, **options)


class AsyncService:
    """The calls of one inference service; needs a running event loop.

    All methods but `ready` raise `grpc.aio.AioRpcError`, which `qwenvl.rpc.read_error` reads. Cancelling a method
    cancels its call. Methods with a spec take its approximate size in bytes, `spec_bytes`, if it is known: a large one
    is then serialised in a thread.

    Args:
        target: `host:port` or a gRPC target such as `dns:///inference:50051`.
        credentials: For TLS; None = plaintext.
        timeout_s: Default timeout of a call, in seconds, connecting and repetitions included; None = none.
        retry_unavailable: See `qwenvl.rpc.channel_options`. If False, a call is repeated once, and only if another
            replica may answer, which suits a proxy with callers that retry themselves.
        interceptors: Interceptors of all calls.
        separate_health: Ask for the service's health over connections of their own, which many calls do not fill.
    """

    def __init__(
        self,
        target: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        retry_unavailable: bool = False,
        interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
        separate_health: bool = False,
    ) -> None:
        options = channel_options(retry_unavailable=retry_unavailable)
        self._timeout_s = timeout_s
        self._tries = 1 if retry_unavailable else 2
        self._channel = _channel(target, credentials, options, interceptors)
        self._health_channel = self._channel
        if separate_health:
            # gRPC would otherwise share the connections of channels with equal options.
            options = [*options, ("grpc.use_local_subchannel_pool", 1)]
            self._health_channel = _channel(target, credentials, options, interceptors)
        channel: Any = _SerialisedRequests(self._channel)
        self._chat = chat_grpc.ChatServiceStub(channel)
        self._completions = completion_grpc.CompletionServiceStub(channel)
        self._decisions = decision_grpc.DecisionServiceStub(channel)
        self._models = model_grpc.ModelServiceStub(channel)
        self._tokenize = tokenize_grpc.TokenizeServiceStub(channel)
        self._admin = admin_grpc.AdminServiceStub(channel)
        self._health: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = (
            self._health_channel.unary_unary(HEALTH_CHECK)
        )

    async def create_chat(
        self,
        spec: chat_pb.ChatCompletionSpec,
        *,
        metadata: Metadata = (),
        timeout_s: float | None = None,
        spec_bytes: int = 0,
    ) -> chat_pb.CreateChatCompletionResponse:
        """Answers a conversation in one message."""
        request = await _serialised(spec, spec_bytes)
        response: chat_pb.CreateChatCompletionResponse = await self._call(
            self._chat.CreateChatCompletion, request, metadata, timeout_s
        )
        return response

    async def stream_chat(
        self,
        spec: chat_pb.ChatCompletionSpec,
        *,
        metadata: Metadata = (),
        timeout_s: float | None = None,
        spec_bytes: int = 0,
    ) -> Events[ChatEvent]:
        """Starts a streamed answer; returns after its first event, so that errors of the request are raised here."""
        request = await _serialised(spec, spec_bytes)
        return await self._begin(self._chat.StreamChatCompletion, request, metadata, timeout_s)

    async def create_completion(
        self,
        spec: completion_pb.CompletionSpec,
        *,
        metadata: Metadata = (),
        timeout_s: float | None = None,
        spec_bytes: int = 0,
    ) -> completion_pb.CreateCompletionResponse:
        """Completes a prompt in one message."""
        request = await _serialised(spec, spec_bytes)
        response: completion_pb.CreateCompletionResponse = await self._call(
            self._completions.CreateCompletion, request, metadata, timeout_s
        )
        return response

    async def stream_completion(
        self,
        spec: completion_pb.CompletionSpec,
        *,
        metadata: Metadata = (),
        timeout_s: float | None = None,
        spec_bytes: int = 0,
    ) -> Events[CompletionEvent]:
        """Starts a streamed text completion; as `stream_chat`."""
        request = await _serialised(spec, spec_bytes)
        return await self._begin(self._completions.StreamCompletion, request, metadata, timeout_s)

    async def create_decisions(
        self,
        spec: decision_pb.DecisionSpec,
        *,
        metadata: Metadata = (),
        timeout_s: float | None = None,
        spec_bytes: int = 0,
    ) -> decision_pb.CreateDecisionsResponse:
        """Decides questions about one input."""
        request = await _serialised(spec, spec_bytes)
        response: decision_pb.CreateDecisionsResponse = await self._call(
            self._decisions.CreateDecisions, request, metadata, timeout_s
        )
        return response

    async def count_tokens(
        self,
        spec: chat_pb.ChatCompletionSpec,
        *,
        metadata: Metadata = (),
        timeout_s: float | None = None,
        spec_bytes: int = 0,
    ) -> usage_pb.Usage:
        """Counts the tokens of a conversation's prompt."""
        request = await _serialised(spec, spec_bytes)
        response: chat_pb.CountTokensResponse = await self._call(
            self._chat.CountTokens, request, metadata, timeout_s
        )
        return response.usage

    async def render_chat(
        self,
        request: chat_pb.RenderChatCompletionRequest,
        *,
        metadata: Metadata = (),
        timeout_s: float | None = None,
        spec_bytes: int = 0,
    ) -> chat_pb.RenderChatCompletionResponse:
        """The prompt of a conversation, as generation would use it."""
        message = await _in_bytes(request, spec_bytes)
        response: chat_pb.RenderChatCompletionResponse = await self._call(
            self._chat.RenderChatCompletion, message, metadata, timeout_s
        )
        return response

    async def render_completion(
        self,
        request: completion_pb.RenderCompletionRequest,
        *,
        metadata: Metadata = (),
        timeout_s: float | None = None,
        spec_bytes: int = 0,
    ) -> completion_pb.RenderCompletionResponse:
        """The prompt of a text completion, as generation would use it."""
        message = await _in_bytes(request, spec_bytes)
        response: completion_pb.RenderCompletionResponse = await self._call(
            self._completions.RenderCompletion, message, metadata, timeout_s
        )
        return response

    async def tokenize(
        self,
        request: tokenize_pb.TokenizeRequest,
        *,
        metadata: Metadata = (),
        timeout_s: float | None = None,
    ) -> tokenize_pb.TokenizeResponse:
        """The token ids of a text."""
        response: tokenize_pb.TokenizeResponse = await self._call(
            self._tokenize.Tokenize, request, metadata, timeout_s
        )
        return response

    async def detokenize(
        self,
        request: tokenize_pb.DetokenizeRequest,
        *,
        metadata: Metadata = (),
        timeout_s: float | None = None,
    ) -> tokenize_pb.DetokenizeResponse:
        """The text of token ids."""
        response: tokenize_pb.DetokenizeResponse = await self._call(
            self._tokenize.Detokenize, request, metadata, timeout_s
        )
        return response

    async def list_models(
        self, *, metadata: Metadata = (), timeout_s: float | None = _SHORT_TIMEOUT_S
    ) -> list[model_pb.Model]:
        """All served names, the canonical one first."""
        response: model_pb.ListModelsResponse = await self._call(
            self._models.ListModels, model_pb.ListModelsRequest(), metadata, timeout_s
        )
        return list(response.models)

    async def get_model(
        self, name: str, *, metadata: Metadata = (), timeout_s: float | None = _SHORT_TIMEOUT_S
    ) -> model_pb.Model:
        """One served name."""
        request = built(model_pb.GetModelRequest, {"name": name})
        response: model_pb.GetModelResponse = await self._call(
            self._models.GetModel, request, metadata, timeout_s
        )
        return response.model

    async def abort(
        self,
        request_ids: Sequence[str],
        *,
        metadata: Metadata = (),
        timeout_s: float | None = _SHORT_TIMEOUT_S,
    ) -> list[str]:
        """Ends requests in flight; returns the ids of those that were."""
        request = admin_pb.AbortRequest(request_ids=request_ids)
        response: admin_pb.AbortResponse = await self._call(
            self._admin.Abort, request, metadata, timeout_s
        )
        return list(response.aborted_request_ids)

    async def server_info(
        self, *, metadata: Metadata = (), timeout_s: float | None = _SHORT_TIMEOUT_S
    ) -> admin_pb.GetServerInfoResponse:
        """Version, limits and state of the service."""
        response: admin_pb.GetServerInfoResponse = await self._call(
            self._admin.GetServerInfo, admin_pb.GetServerInfoRequest(), metadata, timeout_s
        )
        return response

    async def load(
        self, *, metadata: Metadata = (), timeout_s: float | None = _SHORT_TIMEOUT_S
    ) -> admin_pb.Load:
        """The counters of batch and caches."""
        response: admin_pb.GetLoadResponse = await self._call(
            self._admin.GetLoad, admin_pb.GetLoadRequest(), metadata, timeout_s
        )
        return response.load

    async def ready(self) -> bool:
        """Whether the service reports that it is ready."""
        try:
            return await self.check_readiness(_HEALTH_TIMEOUT_S) == SERVING_RESPONSE
        except grpc.aio.AioRpcError:
            return False

    async def check_readiness(self, timeout_s: float) -> bytes:
        """The serialised `HealthCheckResponse` of `readiness`."""
        return await self._health(READINESS_REQUEST, timeout=timeout_s)

    async def close(self) -> None:
        """Closes the channels."""
        await self._channel.close()
        if self._health_channel is not self._channel:
            await self._health_channel.close()

    async def _call(
        self,
        method: Callable[..., Awaitable[_Response]],
        request: Message | bytes,
        metadata: Metadata,
        timeout_s: float | None,
    ) -> _Response:
        async def call(left_s: float | None) -> _Response:
            return await method(request, metadata=grpc.aio.Metadata(*metadata), timeout=left_s)

        return await self._repeated(call, timeout_s)

    async def _begin(
        self,
        method: Callable[..., grpc.aio.UnaryStreamCall[Any, _Event]],
        request: Message | bytes,
        metadata: Metadata,
        timeout_s: float | None,
    ) -> Events[_Event]:
        async def call(left_s: float | None) -> Events[_Event]:
            stream = method(request, metadata=grpc.aio.Metadata(*metadata), timeout=left_s)
            async for first in stream:
                return _ReceivedEvents(stream, first)
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.INTERNAL,
                grpc.aio.Metadata(),
                grpc.aio.Metadata(),
                details="the stream ended without an event",
            )

        return await self._repeated(call, timeout_s)

    async def _repeated(
        self, call: Callable[[float | None], Awaitable[_Response]], timeout_s: float | None
    ) -> _Response:
        """Makes a call, and repeats it if another replica may answer and nothing was received.

        Args:
            call: Makes the call with a timeout in seconds.
            timeout_s: Timeout of all tries together; None = the default.
        """
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        begin = time.monotonic()
        for _ in range(self._tries - 1):
            try:
                return await call(timeout_s)
            except grpc.aio.AioRpcError as error:
                if not read_error(error).is_worth_another_replica:
                    raise
            await asyncio.sleep(_PAUSE_S)
        return await call(timeout_s and timeout_s - (time.monotonic() - begin))


def _channel(
    target: str,
    credentials: grpc.ChannelCredentials | None,
    options: Sequence[tuple[str, str | int]],
    interceptors: Sequence[grpc.aio.ClientInterceptor],
) -> grpc.aio.Channel:
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=options, interceptors=interceptors)
    return grpc.aio.secure_channel(target, credentials, options=options, interceptors=interceptors)


def _as_bytes(request: Message | bytes) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()


async def _in_bytes(request: Message, size: int) -> bytes:
    if size <= _INLINE_BYTES:
        return request.SerializeToString()
    return await asyncio.get_running_loop().run_in_executor(_SERIALISER, request.SerializeToString)


async def _serialised(spec: Message, spec_bytes: int) -> bytes:
    """The request that has a spec in its first field and nothing else."""
    if spec_bytes <= _INLINE_BYTES:
        return _request_of(spec)
    return await asyncio.get_running_loop().run_in_executor(_SERIALISER, _request_of, spec)


def _request_of(spec: Message) -> bytes:
    """As a request's own `SerializeToString`, but without the two copies of the spec that making a request takes."""
    data = spec.SerializeToString()
    head, size = bytearray(b"\x0a"), len(data)  # field 1, a message
    while size >= 128:
        head.append(size % 128 + 128)
        size //= 128
    head.append(size)
    return b"".join((head, data))
