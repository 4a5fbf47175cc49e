"""What the servicers that generate have in common: the served name, the deadline, the events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
import contextlib

from inference_service.backend.local import Completions
from inference_service.domain import Event, Request
from inference_service.errors import DeadlineError, ModelNotFoundError
from inference_service.grpc_api.call_context import this_call
from inference_service.settings import ServiceSettings


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

    async def _events(self, asked: Request) -> AsyncGenerator[Event, None]:
        call = this_call()
        answer = self._completions.answer(asked, call.caller)
        async with contextlib.aclosing(answer) as events:
            while True:
                # Never across the yield: there the task is gRPC's, which would end the call without a status.
                async with until(call.deadline):
                    event = await anext(events, None)
                if event is None:
                    return
                yield event


@contextlib.asynccontextmanager
async def until(deadline: float | None) -> AsyncIterator[None]:
    """Ends what is inside at a moment of `time.monotonic()`, which is the loop's clock.

    Raises:
        DeadlineError: The moment has come.
    """
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise DeadlineError("The request took too long.") from None
