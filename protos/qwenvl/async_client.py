"""The typed client for asyncio: `qwenvl.Client` with `await`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable, Sequence
import contextlib
from types import TracebackType
from typing import Any, Self

import grpc

from qwenvl.aio import AsyncService, ChatEvent
from qwenvl.client import Error
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from qwenvl.rpc import DEFAULT_TIMEOUT_S
from qwenvl.specs import Answer, Image, Question, answer_of, chat_spec, completion_spec


class AsyncClient:
    """A client of one inference service; create and use it in one event loop.

    Args:
        target: `host:port` or a gRPC target such as `dns:///inference:50051`.
        api_key: Sent as `authorization: Bearer ...`.
        credentials: For TLS; None = plaintext.
    """

    def __init__(
        self,
        target: str,
        *,
        api_key: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._service = AsyncService(target, credentials=credentials, retry_unavailable=True)
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()

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
        """Closes the connection."""
        await self._service.close()

    async def models(self) -> list[model_pb.Model]:
        """All served names, the canonical one first.

        Raises:
            Error: The call failed.
        """
        with _errors():
            return await self._service.list_models(metadata=self._metadata)

    async def chat(
        self,
        question: Question,
        *,
        images: Iterable[Image] = (),
        model: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        grounding: bool = False,
        **sampling: Any,
    ) -> Answer:
        """Returns a complete answer; cancelling the task aborts it. Arguments and errors as `Client.chat`."""
        name = await self._model(model)
        spec = chat_spec(question, images, name, sampling, grounding=grounding)
        with _errors():
            response = await self._service.create_chat(
                spec, metadata=self._metadata, timeout_s=timeout_s
            )
        return answer_of(response)

    async def complete(
        self,
        prompt: str | Sequence[int],
        *,
        images: Iterable[Image] = (),
        model: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        **sampling: Any,
    ) -> Answer:
        """Completes a prompt, without a chat template; arguments and errors as `Client.complete`."""
        spec = completion_spec(prompt, images, await self._model(model), sampling)
        with _errors():
            response = await self._service.create_completion(
                spec, metadata=self._metadata, timeout_s=timeout_s
            )
        return answer_of(response)

    async def stream(
        self,
        question: Question,
        *,
        images: Iterable[Image] = (),
        model: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        **sampling: Any,
    ) -> AsyncGenerator[str, None]:
        """Yields the text of an answer piece by piece; arguments and errors as `Client.chat`."""
        events = self.events(question, images=images, model=model, timeout_s=timeout_s, **sampling)
        async with contextlib.aclosing(events):
            async for event in events:
                if event.delta.text:
                    yield event.delta.text

    async def events(
        self,
        question: Question,
        *,
        images: Iterable[Image] = (),
        model: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        grounding: bool = False,
        **sampling: Any,
    ) -> AsyncGenerator[ChatEvent, None]:
        """Yields every event of a stream; arguments and errors as `Client.chat`. Closing it aborts the answer."""
        name = await self._model(model)
        spec = chat_spec(question, images, name, sampling, grounding=grounding)
        with _errors():
            events = await self._service.stream_chat(
                spec, metadata=self._metadata, timeout_s=timeout_s
            )
            try:
                async for event in events:
                    yield event
            finally:
                events.cancel()

    async def count_tokens(
        self,
        question: Question,
        *,
        images: Iterable[Image] = (),
        model: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> usage_pb.Usage:
        """Counts the prompt tokens of a question; arguments and errors as `Client.chat`."""
        spec = chat_spec(question, images, await self._model(model), {})
        with _errors():
            return await self._service.count_tokens(
                spec, metadata=self._metadata, timeout_s=timeout_s
            )

    async def _model(self, name: str | None) -> str:
        return name or (await self.models())[0].name


@contextlib.contextmanager
def _errors() -> Generator[None, None, None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise Error.from_rpc(error) from None
