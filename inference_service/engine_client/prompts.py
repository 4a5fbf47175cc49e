"""The prompts that an engine is preparing."""

from __future__ import annotations

import asyncio

from inference_service.engine_protocol import wire
from inference_service.engine_protocol.messages import EngineFailure, PromptLayout
from inference_service.errors import ERRORS_BY_REASON, InternalError, ServiceError


class PromptsInFlight:
    """Numbers prompts and gives each its layout. Belongs to one event loop."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[PromptLayout]] = {}
        self._count = 0

    def begin(self) -> tuple[int, asyncio.Future[PromptLayout]]:
        """The number of a further prompt, and the future that its layout or its error is set in."""
        self._count += 1
        future: asyncio.Future[PromptLayout] = asyncio.get_running_loop().create_future()
        number = self._count
        self._waiting[number] = future
        future.add_done_callback(lambda _: self._waiting.pop(number, None))
        return number, future

    def settle(self, prepared: wire.Prepared) -> None:
        """Takes the engine's reply; that to a prompt whose caller has left is dropped."""
        future = self._waiting.get(prepared.number)
        if future is None or future.done():
            return
        if prepared.layout is not None:
            future.set_result(prepared.layout)
        else:
            future.set_exception(_error_of(prepared.failure))

    def fail(self, error: ServiceError) -> None:
        """Ends all of them with an error."""
        for future in tuple(self._waiting.values()):
            if not future.done():
                future.set_exception(error)
                future.exception()  # its caller may have left


def _error_of(failure: EngineFailure | None) -> ServiceError:
    kind = None if failure is None else ERRORS_BY_REASON.get(failure.reason)
    if failure is None or kind is None:
        return InternalError("The engine failed on this prompt.")
    return kind(failure.message, metadata=failure.metadata, retry_after_s=failure.retry_after_s)
