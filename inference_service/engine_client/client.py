"""An engine in a child process: sends it requests and prompts, and returns its outputs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
import logging
import os
from typing import Final

from inference_service.engine_client.child import DEFAULT_COMMAND, EngineProcess
from inference_service.engine_client.gate import Gate
from inference_service.engine_client.inflight import MUCH_BYTES, RequestInFlight, cut_greediest
from inference_service.engine_client.interface import EngineState, nothing
from inference_service.engine_client.pixels import copy_pixels
from inference_service.engine_client.prompts import PromptInFlight, PromptsInFlight
from inference_service.engine_client.supervisor import EngineSupervisor
from inference_service.engine_protocol import wire
from inference_service.engine_protocol.messages import (
    ChoiceOutput,
    EngineConfig,
    EngineReady,
    EngineRequest,
    EngineStats,
    PromptLayout,
    PromptSource,
)
from inference_service.errors import RequestIdInUseError


_BACKLOG_BYTES: Final = 256 * 2**20

logger = logging.getLogger(__name__)


class EngineClient:
    """An `Engine` in a child process. Belongs to one event loop; start it in the loop's thread."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        start_timeout_s: float,
        stall_timeout_s: float,
        pixel_budget_bytes: int,
        command: Sequence[str] | None = None,
        restart_delay_s: float = 0.5,
        first: EngineProcess | None = None,
        backlog_bytes: int = _BACKLOG_BYTES,
    ) -> None:
        """Does not start the engine yet; `start` does.

        Args:
            config: Configuration of every engine process.
            start_timeout_s: Maximum time to load the model.
            stall_timeout_s: An engine that makes no progress for this long, not even within a step, is killed.
            pixel_budget_bytes: Maximum bytes of pixels in flight; requests over it wait in a line.
            command: Program and arguments of the engine process.
            restart_delay_s: First delay of the exponential backoff.
            first: A process of this command that runs already, for the first start.
            backlog_bytes: Maximum bytes of log probabilities that wait for slow clients.
        """
        self._supervisor = EngineSupervisor(
            config,
            command=DEFAULT_COMMAND if command is None else command,
            first=first,
            start_timeout_s=start_timeout_s,
            stall_timeout_s=stall_timeout_s,
            restart_delay_s=restart_delay_s,
            on_event=self._on_event,
            on_lost=self._on_lost,
        )
        self._backlog_bytes = backlog_bytes
        self._gate = Gate(pixel_budget_bytes)
        self._requests: dict[str, RequestInFlight] = {}
        self._read: set[RequestInFlight] = set()  # by somebody, also after their end
        self._waits_for_ids: dict[str, asyncio.Event] = {}  # set by the abort of the one that waits
        self._prompts = PromptsInFlight(self._forget_prompt)

    # ---- the interface of Engine, documented there ----

    @property
    def state(self) -> EngineState:
        """See `Engine`."""
        return self._supervisor.state

    @property
    def ready(self) -> EngineReady | None:
        """See `Engine`."""
        return self._supervisor.ready

    @property
    def stats(self) -> EngineStats:
        """See `Engine`."""
        return self._supervisor.stats

    @property
    def restarts(self) -> Counter[str]:
        """See `Engine`."""
        return self._supervisor.restarts

    @property
    def last_step_s(self) -> float | None:
        """See `Engine`."""
        return self._supervisor.last_step_s

    @property
    def pid(self) -> int | None:
        """See `Engine`."""
        child = self._supervisor.child
        return None if child is None else child.pid

    @property
    def pixel_bytes_in_flight(self) -> int:
        """See `Engine`."""
        return self._gate.pixel_bytes

    def on_state_change(self, callback: Callable[[EngineState], None]) -> None:
        """See `Engine`."""
        self._supervisor.on_state_change(callback)

    async def start(self) -> None:
        """See `Engine`."""
        await self._supervisor.start()

    async def close(self) -> None:
        """See `Engine`."""
        await self._supervisor.close()

    async def abort(self, request_id: str, choice_index: int | None = None) -> None:
        """See `Engine`."""
        if choice_index is None and request_id in self._waits_for_ids:
            self._waits_for_ids[request_id].set()
        flight = self._requests.get(request_id)
        if flight is None or flight.abandoned:
            return
        if flight.sent:
            self._supervisor.send(wire.Abort(request_id, choice_index))
        else:
            flight.push_aborted(choice_index)
            if flight.over.is_set():
                self._forget(flight)

    async def generate(
        self,
        request: EngineRequest,
        pixels: list[bytes | memoryview],
        *,
        counted: Callable[[int], None] = nothing,
        computed: Callable[[], None] = nothing,
    ) -> AsyncGenerator[ChoiceOutput, None]:
        """See `Engine`."""
        if not await self._wait_for_id(request.request_id):
            for choice_index in range(request.num_choices):
                yield ChoiceOutput.aborted(request.request_id, choice_index)
            return
        flight = self._admit(request, sum(memoryview(image).nbytes for image in pixels))
        flight.counted, flight.computed = counted, computed
        self._read.add(flight)
        try:
            # An abort or an engine failure cancels the reservation; `wait` then returns instead of raising.
            await asyncio.wait([flight.reservation.granted])
            pixel_fd = None
            if flight.pixel_bytes and not flight.over.is_set():
                pixel_fd = await copy_pixels(tuple(pixels))
            pixels.clear()
            self._submit(flight, pixel_fd)
            unfinished = request.num_choices
            while unfinished:
                output = await flight.next()
                unfinished -= output.finish_reason is not None
                yield output
        finally:
            self._read.discard(flight)
            self._leave(flight)

    async def prepare(
        self, source: PromptSource, pixels: Sequence[bytes | memoryview], caller: str = ""
    ) -> PromptLayout:
        """See `PreparingEngine`."""
        if self.state is not EngineState.READY:
            raise self._supervisor.unavailable()
        pixel_bytes = sum(memoryview(image).nbytes for image in pixels)
        reservation = self._gate.enter(source, pixel_bytes, caller)
        prompt = self._prompts.begin(source, pixel_bytes, reservation)
        try:
            await self._prompts.wait(prompt, caller)
            pixel_fd = None
            if pixel_bytes and not prompt.layout.done():
                pixel_fd = await copy_pixels(tuple(pixels))
            child = self._supervisor.child
            if not prompt.layout.done() and child is not None:
                child.send(wire.Prepare(prompt.number, source, pixel_bytes), pixel_fd)
                prompt.sent = True
            elif pixel_fd is not None:
                os.close(pixel_fd)
            return await prompt.layout
        finally:
            if self._prompts.leave(prompt):
                self._supervisor.send(wire.Forget(prompt.number))

    # ---- requests ----

    async def _wait_for_id(self, request_id: str) -> bool:
        """Waits for an abandoned request with the same id, so that a caller's retry does not collide with it.

        Returns:
            False if the new request was aborted while it waited.
        """
        aborted = asyncio.Event()
        while (flight := self._requests.get(request_id)) is not None and flight.abandoned:
            aborted = self._waits_for_ids.setdefault(request_id, aborted)
            try:
                await flight.over.wait()
            finally:
                self._waits_for_ids.pop(request_id, None)
            if aborted.is_set():
                return False
        return True

    def _admit(self, request: EngineRequest, pixel_bytes: int) -> RequestInFlight:
        if self.state is not EngineState.READY:
            raise self._supervisor.unavailable()
        if request.request_id in self._requests:
            raise RequestIdInUseError(
                f"request_id {request.request_id!r} is used by a request in flight; choose another one."
            )
        if any(span.pixel_offset + span.pixel_bytes > pixel_bytes for span in request.images):
            raise ValueError("an image span lies outside of the given pixels")
        reservation = self._gate.enter(request, pixel_bytes, request.caller)
        flight = RequestInFlight(request, pixel_bytes, reservation)
        self._requests[request.request_id] = flight
        return flight

    def _submit(self, flight: RequestInFlight, pixel_fd: int | None) -> None:
        """Sends the request, unless it ended while it waited."""
        child = self._supervisor.child
        if flight.over.is_set() or child is None:
            if pixel_fd is not None:
                os.close(pixel_fd)
            return
        request = flight.request
        child.send(wire.Add(request, flight.pixel_bytes), pixel_fd)
        flight.sent = True
        for choice_index in set(range(request.num_choices)) - flight.open_choices:
            child.send(wire.Abort(request.request_id, choice_index))  # aborted while it waited

    def _leave(self, flight: RequestInFlight) -> None:
        """Aborts what the engine still computes; its pixels count until the engine confirms the abort."""
        if flight.over.is_set():
            return
        if flight.sent:
            flight.abandoned = True
            self._supervisor.send(wire.Abort(flight.request.request_id))
        else:
            self._forget(flight)

    def _forget(self, flight: RequestInFlight, *, answered: bool = False) -> None:
        del self._requests[flight.request.request_id]
        self._gate.leave(flight.request, flight.reservation, answered=answered)
        flight.computed()

    def _forget_prompt(self, prompt: PromptInFlight, answered: bool) -> None:
        self._gate.leave(prompt.source, prompt.reservation, answered=answered)

    # ---- what the supervisor tells ----

    def _on_event(self, event: wire.Event) -> None:
        match event:
            case wire.Outputs(outputs=outputs):
                for output in outputs:
                    self._on_output(output)
            case wire.Prepared():
                self._prompts.settle(event)

    def _on_output(self, output: ChoiceOutput) -> None:
        flight = self._requests.get(output.request_id)
        if flight is None:
            return
        flight.push(output)
        if flight.buffered_bytes > MUCH_BYTES:
            cut = cut_greediest(self._read, self._backlog_bytes)
            if cut is not None and not cut.over.is_set():
                self._supervisor.send(wire.Abort(cut.request.request_id))
        if flight.over.is_set():
            self._forget(flight, answered=not flight.unanswered_choices)

    def _on_lost(self, reason: str, blame: bool) -> None:
        """Ends every request and prompt."""
        if blame:
            requests = [flight.request for flight in self._requests.values() if flight.sent]
            self._gate.blame([*requests, *self._prompts.sent])
        self._prompts.fail(self._supervisor.unavailable(was_sent=True))
        if self._requests:
            logger.error("%d requests end with the engine: %s", len(self._requests), reason)
        for flight in tuple(self._requests.values()):
            flight.fail(self._supervisor.unavailable(was_sent=flight.sent))
            self._forget(flight)
