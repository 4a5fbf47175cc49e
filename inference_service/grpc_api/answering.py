"""What the servicers that answer have in common: the served name, the deadline, the events.

Owns the time that a request may take.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
import contextlib
from typing import Any

import grpc.aio

from inference_service.backend.local import Completions
from inference_service.domain import Event, Request
from inference_service.errors import DeadlineError, ModelNotFoundError
from inference_service.grpc_api.interceptors import caller_of_call
from inference_service.settings import ServiceSettings


Context = grpc.aio.ServicerContext[Any, Any]


class Answering:
    """Base of ChatServicer and CompletionServicer."""

    def __init__(self, completions: Completions, settings: ServiceSettings) -> None:
        self._completions = completions
        self._settings = settings

    def _canonical(self, name: str) -> str:
        """The canonical name of a served model."""
        model = self._completions.model
        if name not in model.names:
            raise ModelNotFoundError(
                f"The model {name[:100]!r} is not served here.",
                field="spec.model",
                metadata={"model": name[:100]},
            )
        return model.name

    async def _events(self, asked: Request, context: Context) -> AsyncGenerator[Event, None]:
        deadline = self._deadline(context)
        answer = self._completions.answer(asked, caller_of_call.get())
        async with contextlib.aclosing(answer) as events:
            while True:
                # Never across the yield: there the task is gRPC's, which would end the call without a status.
                async with until(deadline):
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
async def until(deadline: float | None) -> AsyncIterator[None]:
    """Ends what is inside at a moment of the loop's time.

    Raises:
        DeadlineError: The moment has come.
    """
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise DeadlineError("The request took too long.") from None
