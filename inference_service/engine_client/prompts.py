"""The prompts that an engine is preparing, few at a time: the others wait here, for callers in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from inference_service.engine_protocol import wire
from inference_service.engine_protocol.messages import EngineFailure, PromptLayout, PromptSource
from inference_service.errors import ERRORS_BY_REASON, InternalError, ServiceError
from inference_service.line import Line, Place


_AT_ONCE: Final = 2
"""The engine prepares one at a time, and has the next one when that is done."""


@dataclass(slots=True, eq=False)
class PromptInFlight:
    """A prompt in flight.

    Attributes:
        number: Its number.
        source: What it is made of.
        pixel_bytes: Size of its media.
        reservation: Their reservation in the pixel budget.
        layout: Where its layout or its error is set; cancelled when its caller leaves.
        turn: Its place in the line for the engine; None while it waits for its reservation.
        sent: It was sent to the engine.
    """

    number: int
    source: PromptSource
    pixel_bytes: int
    reservation: Place
    layout: asyncio.Future[PromptLayout] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    turn: Place | None = None
    sent: bool = False


class PromptsInFlight:
    """Numbers prompts and gives each its layout. Belongs to one event loop.

    Args:
        forgotten: Called once for each prompt, when the engine has replied or is gone, or will not get it, with whether
            the engine has prepared or refused it.
    """

    def __init__(self, forgotten: Callable[[PromptInFlight, bool], None]) -> None:
        self._forgotten = forgotten
        self._prompts: dict[int, PromptInFlight] = {}
        self._count = 0
        self._line = Line(_AT_ONCE)

    @property
    def sent(self) -> tuple[PromptSource, ...]:
        """The sources of those that the engine has."""
        return tuple(prompt.source for prompt in self._prompts.values() if prompt.sent)

    def begin(self, source: PromptSource, pixel_bytes: int, reservation: Place) -> PromptInFlight:
        """A further prompt, with the reservation of its media's bytes."""
        self._count += 1
        prompt = PromptInFlight(self._count, source, pixel_bytes, reservation)
        self._prompts[prompt.number] = prompt
        return prompt

    async def wait(self, prompt: PromptInFlight, caller: str) -> None:
        """Waits for its reservation, and then for its caller's turn; or until it has failed."""
        # A failure cancels what is waited for; `asyncio.wait` then returns instead of raising.
        await asyncio.wait([prompt.reservation.granted])
        if not prompt.layout.done():
            prompt.turn = self._line.ask(caller, 1)
            await asyncio.wait([prompt.turn.granted])

    def leave(self, prompt: PromptInFlight) -> bool:
        """Its caller has left; what the engine has counts until it replies. Returns whether it has yet to."""
        if not prompt.sent:
            self._forget(prompt, answered=False)
        return prompt.number in self._prompts

    def settle(self, prepared: wire.Prepared) -> None:
        """Takes the engine's reply; nobody waits for it if the caller has left."""
        prompt = self._prompts.get(prepared.number)
        if prompt is None:
            return
        if not prompt.layout.done():
            if prepared.layout is not None:
                prompt.layout.set_result(prepared.layout)
            else:
                prompt.layout.set_exception(_error_of(prepared.failure))
        answered = prepared.layout is not None or prepared.failure is not None
        self._forget(prompt, answered=answered)

    def fail(self, error: ServiceError) -> None:
        """Ends all of them with an error."""
        for prompt in tuple(self._prompts.values()):
            if not prompt.layout.done():
                prompt.layout.set_exception(error)
                prompt.layout.exception()  # its caller may have left
            self._forget(prompt, answered=False)

    def _forget(self, prompt: PromptInFlight, *, answered: bool) -> None:
        if self._prompts.pop(prompt.number, None) is not None:
            if prompt.turn is not None:
                prompt.turn.leave()
            self._forgotten(prompt, answered)


def _error_of(failure: EngineFailure | None) -> ServiceError:
    kind = None if failure is None else ERRORS_BY_REASON.get(failure.reason)
    if failure is None or kind is None:
        return InternalError("The engine failed on this prompt.")
    return kind(failure.message, metadata=failure.metadata, retry_after_s=failure.retry_after_s)
