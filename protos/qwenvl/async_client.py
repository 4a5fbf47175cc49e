"""The typed client for asyncio: `qwenvl.Client` with `await`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Sequence
import contextlib
from types import TracebackType
from typing import Self, TypedDict, TypeVar, Unpack

import grpc

from qwenvl.aio import AsyncService, Events, Metadata
from qwenvl.answers import Answer, AsyncAnswerStream, ChatEvent, CompletionEvent, answer_of
from qwenvl.connection import (
    PAUSE_S,
    ReadinessWait,
    closed_error,
    ended_by_close,
    metadata_of,
    target_of,
)
from qwenvl.conversation import AsyncConversation
from qwenvl.decisions import DecisionOptions, Decisions, decision_spec, decisions_of
from qwenvl.exceptions import AbortedError, Error
from qwenvl.images import Images
from qwenvl.inference.v1 import admin_service_pb2 as admin_pb
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import decision_service_pb2 as decision_pb
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import tokenize_service_pb2 as tokenize_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from qwenvl.messages import Question
from qwenvl.options import ChatOptions, CompletionOptions
from qwenvl.rpc import DEFAULT_TIMEOUT_S, call_timeout
from qwenvl.specs import (
    Prompt,
    abort_request,
    chat_spec,
    completion_spec,
    detokenize_request,
    tokenize_request,
)


_Event = TypeVar("_Event")


class _CallOptions(TypedDict):
    metadata: Metadata
    timeout_s: float | None


class AsyncClient:
    """A client of one inference service; create it anywhere, and use it in one event loop at a time.

    Arguments and errors are those of `qwenvl.Client`. Cancelling a task aborts the answer it waits for.

    Args:
        target: `host:port` or a gRPC target such as `dns:///inference:50051`; None = that of the environment
            (`QWENVL_GRPC_TARGET`), or `127.0.0.1:50051`.
        api_key: Sent as `authorization: Bearer ...`; None = that of the environment (`QWENVL_API_KEY`), empty = none.
        credentials: For TLS; None = plaintext.

    Raises:
        TypeError: Target or key is not a text.
        ValueError: The target has a wrong port or none to call, or the key cannot be sent.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        api_key: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._metadata = metadata_of(api_key)
        self._target = target_of(target)
        self._credentials = credentials
        self._opened: tuple[asyncio.AbstractEventLoop, AsyncService] | None = None
        self._closed = False

    @property
    def _service(self) -> AsyncService:
        """The connection, opened by the first call, because it belongs to the event loop that runs then.

        A program that calls `asyncio.run` several times has another loop each time.

        Raises:
            RuntimeError: It is closed, or belongs to another loop, which has not ended.
        """
        if self._closed:
            raise closed_error(self)
        loop = asyncio.get_running_loop()
        if self._opened is not None and self._opened[0] is not loop:
            if not self._opened[0].is_closed():
                raise RuntimeError(
                    "this AsyncClient is in use in another event loop: create one for each"
                )
            self._opened = None
        if self._opened is None:
            service = AsyncService(
                self._target, credentials=self._credentials, timeout_s=None, retry_unavailable=True
            )
            self._opened = loop, service
        return self._opened[1]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; calls that are running end with `AbortedError`."""
        if self._closed:
            return
        service = self._service
        self._closed = True
        await service.close()

    async def wait_until_ready(self, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> None:
        """Returns when the service is reached and has loaded its model; errors as `Client.wait_until_ready`."""
        wait = ReadinessWait(self._target, timeout_s)
        while True:
            with self._errors():
                try:
                    if wait.is_over(await self._service.check_readiness(wait.next_attempt_s())):
                        return
                except grpc.aio.AioRpcError as error:
                    wait.failed(error)
            await asyncio.sleep(PAUSE_S)

    async def models(self, *, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> list[model_pb.Model]:
        """All served names, the canonical one first."""
        options = self._call_options(timeout_s)
        with self._errors():
            return await self._service.list_models(**options)

    async def model(
        self, name: str = "", *, timeout_s: float | None = DEFAULT_TIMEOUT_S
    ) -> model_pb.Model:
        """One served name; empty = the canonical one."""
        options = self._call_options(timeout_s)
        with self._errors():
            return await self._service.get_model(name, **options)

    async def chat(
        self,
        question: Question,
        *,
        images: Images | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        **options: Unpack[ChatOptions],
    ) -> Answer:
        """Returns a complete answer; cancelling the task aborts it. Arguments and errors as `Client.chat`."""
        spec = chat_spec(question, images, options)
        call_options = self._call_options(timeout_s)
        with self._errors():
            return answer_of(await self._service.create_chat(spec, **call_options))

    def stream(
        self,
        question: Question,
        *,
        images: Images | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        **options: Unpack[ChatOptions],
    ) -> AsyncAnswerStream[ChatEvent]:
        """Yields the text of an answer piece by piece; arguments and errors as `Client.stream`."""
        events = self.events(question, images=images, timeout_s=timeout_s, **options)
        return AsyncAnswerStream(events, chat_pb.CreateChatCompletionResponse())

    def events(
        self,
        question: Question,
        *,
        images: Images | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        **options: Unpack[ChatOptions],
    ) -> AsyncGenerator[ChatEvent, None]:
        """Yields every event of a stream; arguments and errors as `Client.chat`. Closing it aborts the answer."""
        spec = chat_spec(question, images, options)
        call_options = self._call_options(timeout_s)
        return self._events(lambda: self._service.stream_chat(spec, **call_options))

    async def complete(
        self,
        prompt: Prompt,
        *,
        images: Images | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        **options: Unpack[CompletionOptions],
    ) -> Answer:
        """Completes a prompt, without a chat template; arguments and errors as `Client.complete`."""
        spec = completion_spec(prompt, images, options)
        call_options = self._call_options(timeout_s)
        with self._errors():
            return answer_of(await self._service.create_completion(spec, **call_options))

    def stream_complete(
        self,
        prompt: Prompt,
        *,
        images: Images | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        **options: Unpack[CompletionOptions],
    ) -> AsyncAnswerStream[CompletionEvent]:
        """Yields the completion of a prompt piece by piece; arguments and errors as `Client.complete`."""
        spec = completion_spec(prompt, images, options)
        call_options = self._call_options(timeout_s)
        events = self._events(lambda: self._service.stream_completion(spec, **call_options))
        return AsyncAnswerStream(events, completion_pb.CreateCompletionResponse())

    async def decide(
        self,
        evidence: Question,
        questions: Sequence[decision_pb.DecisionQuestion],
        *,
        images: Images | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        **options: Unpack[DecisionOptions],
    ) -> Decisions:
        """Decides questions about one input; cancelling the task aborts it. Arguments and errors as `Client.decide`."""
        spec = decision_spec(evidence, questions, images, options)
        call_options = self._call_options(timeout_s)
        with self._errors():
            response = await self._service.create_decisions(spec, **call_options)
        return decisions_of(spec, response)

    async def count_tokens(
        self,
        question: Question,
        *,
        images: Images | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        **options: Unpack[ChatOptions],
    ) -> usage_pb.Usage:
        """Counts the prompt tokens of a question; arguments and errors as `Client.chat`."""
        spec = chat_spec(question, images, options)
        call_options = self._call_options(timeout_s)
        with self._errors():
            return await self._service.count_tokens(spec, **call_options)

    async def render(
        self,
        question: Question,
        *,
        images: Images | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        **options: Unpack[ChatOptions],
    ) -> chat_pb.RenderChatCompletionResponse:
        """Returns the prompt of a question as `chat` would use it; arguments and errors as `Client.chat`."""
        request = chat_pb.RenderChatCompletionRequest(spec=chat_spec(question, images, options))
        call_options = self._call_options(timeout_s)
        with self._errors():
            return await self._service.render_chat(request, **call_options)

    async def render_complete(
        self,
        prompt: Prompt,
        *,
        images: Images | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        **options: Unpack[CompletionOptions],
    ) -> completion_pb.RenderCompletionResponse:
        """Returns the tokens of a prompt as `complete` would use them; arguments and errors as `Client.complete`."""
        spec = completion_spec(prompt, images, options)
        request = completion_pb.RenderCompletionRequest(spec=spec)
        call_options = self._call_options(timeout_s)
        with self._errors():
            return await self._service.render_completion(request, **call_options)

    async def tokenize(
        self,
        text: str,
        *,
        model: str = "",
        parse_special: bool = True,
        strings: bool = False,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
    ) -> tokenize_pb.TokenizeResponse:
        """Returns the token ids of a text; arguments and errors as `Client.tokenize`."""
        request = tokenize_request(text, model, parse_special=parse_special, strings=strings)
        call_options = self._call_options(timeout_s)
        with self._errors():
            return await self._service.tokenize(request, **call_options)

    async def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        model: str = "",
        skip_special_tokens: bool = False,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
    ) -> str:
        """Returns the text of token ids; arguments and errors as `Client.detokenize`."""
        request = detokenize_request(token_ids, model, skip_special_tokens=skip_special_tokens)
        call_options = self._call_options(timeout_s)
        with self._errors():
            return (await self._service.detokenize(request, **call_options)).text

    def conversation(self, **options: Unpack[ChatOptions]) -> AsyncConversation:
        """A conversation that remembers its history; arguments as `Client.conversation`."""
        return AsyncConversation(self, options)

    async def abort(
        self, *request_ids: str | Iterable[str], timeout_s: float | None = DEFAULT_TIMEOUT_S
    ) -> list[str]:
        """Ends requests in flight with these ids, or lists of ids; returns the ids of those that were."""
        request, options = abort_request(request_ids), self._call_options(timeout_s)
        with self._errors():
            return await self._service.abort(request.request_ids, **options)

    async def server_info(
        self, *, timeout_s: float | None = DEFAULT_TIMEOUT_S
    ) -> admin_pb.GetServerInfoResponse:
        """Version, limits and state of the service."""
        options = self._call_options(timeout_s)
        with self._errors():
            return await self._service.server_info(**options)

    async def load(self, *, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> admin_pb.Load:
        """The counters of batch and caches."""
        options = self._call_options(timeout_s)
        with self._errors():
            return await self._service.load(**options)

    def _call_options(self, timeout_s: float | None) -> _CallOptions:
        return {"metadata": self._metadata, "timeout_s": call_timeout(timeout_s)}

    async def _events(
        self, begin: Callable[[], Awaitable[Events[_Event]]]
    ) -> AsyncGenerator[_Event, None]:
        with self._errors():
            events = await begin()
            try:
                async for event in events:
                    yield event
            finally:
                events.cancel()

    @contextlib.contextmanager
    def _errors(self) -> Generator[None, None, None]:
        """Raises the errors of a call as this client's own."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            problem = Error.from_rpc(error)
            raise ended_by_close(problem) if self._closed else problem from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._closed or task is None or task.cancelling():
                raise
            # gRPC's way to say that the channel was closed; nobody has cancelled the task.
            raise ended_by_close(AbortedError(grpc.StatusCode.CANCELLED, "")) from None
