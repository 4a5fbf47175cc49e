"""How ChatService and CompletionService run a request: the served name, the deadline, the events as messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
import contextlib
from typing import Any

import grpc.aio

from inference_service.backend.base import Backend, TokenCount
from inference_service.domain import Event, Request
from inference_service.errors import DeadlineError, ModelNotFoundError
from inference_service.grpc_api.interceptors import caller_of_call
from inference_service.grpc_api.responses import gather, stream_fields
from inference_service.settings import ServiceSettings


Context = grpc.aio.ServicerContext[Any, Any]


class Generation:
    """Runs requests of either service on the backend."""

    def __init__(self, backend: Backend, settings: ServiceSettings) -> None:
        self._backend = backend
        self._settings = settings

    def canonical_name(self, name: str) -> str:
        """The canonical name of a served model.

        Raises:
            ModelNotFoundError: No model of this name is served.
        """
        names = self._backend.names
        if name not in names:
            raise ModelNotFoundError(
                f"The model {name[:100]!r} is not served here.",
                field="spec.model",
                metadata={"model": name[:100]},
            )
        return names[0]

    async def whole_fields(self, request: Request, context: Context) -> dict[str, Any]:
        """The fields of a unary response: all events of a request in one message."""
        async with contextlib.aclosing(self._events(request, context)) as events:
            return (await gather(events, request.model)).fields()

    async def stream_fields(
        self, request: Request, context: Context
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The fields of every message of a stream: one for each event, as it comes."""
        async with contextlib.aclosing(self._events(request, context)) as events:
            async for event in events:
                yield stream_fields(event, request.model)

    async def count(self, request: Request, context: Context) -> TokenCount:
        """Counts the tokens of a request's prompt."""
        async with _until(self._deadline(context)):
            return await self._backend.count(request, caller_of_call.get())

    async def _events(self, request: Request, context: Context) -> AsyncGenerator[Event, None]:
        deadline = self._deadline(context)
        generation = self._backend.generate(request, caller_of_call.get())
        async with contextlib.aclosing(generation) as events:
            while True:
                # Never across the yield: there the task is gRPC's, which would end the call without a status.
                async with _until(deadline):
                    event = await anext(events, None)
                if event is None:
                    return
                yield event

    def _deadline(self, context: Context) -> float | None:
        """When a request without a deadline ends, in the loop's time; a caller's own cancels the call by itself."""
        if context.time_remaining() is not None:
            return None
        return asyncio.get_running_loop().time() + self._settings.request_timeout_s


@contextlib.asynccontextmanager
async def _until(deadline: float | None) -> AsyncIterator[None]:
    """Ends what is inside at a moment of the loop's time.

    Raises:
        DeadlineError: The moment has come.
    """
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise DeadlineError("The request took too long.") from None
