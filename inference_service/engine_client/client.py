"""Runs the engine in a child process: sends it requests, returns its outputs and restarts it when it fails."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
import contextlib
from dataclasses import replace
import logging
import os
import time
from typing import Final

from inference_service.engine_client.budget import PixelBudget
from inference_service.engine_client.child import DEFAULT_COMMAND, EngineChild, EngineProcess
from inference_service.engine_client.inflight import RequestInFlight
from inference_service.engine_client.interface import EngineStartError, EngineState, nothing
from inference_service.engine_client.prompts import PromptInFlight, PromptsInFlight
from inference_service.engine_client.quarantine import Asked, Quarantine, Verdict
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
from inference_service.errors import (
    EngineUnavailableError,
    InternalError,
    RequestIdInUseError,
    ServiceError,
)


MAX_RESTART_DELAY_S: Final = 30.0
HEALTHY_AFTER_S: Final = 60.0
MAX_FAILED_LOADS: Final = 5
CLOSE_GRACE_S: Final = 5.0
SILENT_AFTER_S: Final = 3.0
"""An engine process sends something every second, whatever it computes."""
_WATCH_S: Final = 0.25

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
    ) -> None:
        """Does not start the engine yet; `start` does.

        Args:
            config: Configuration of every engine process.
            start_timeout_s: Maximum time to load the model.
            stall_timeout_s: An engine that makes no progress for this long, not even within a step, is killed.
            pixel_budget_bytes: Maximum bytes of pixels in flight; requests over it wait in a queue.
            command: Program and arguments of the engine process.
            restart_delay_s: First delay of the exponential backoff.
            first: A process of this command that runs already, for the first start.
        """
        self.state = EngineState.STARTING
        self.ready: EngineReady | None = None
        self.stats = EngineStats()
        self.restarts: Counter[str] = Counter()
        self.last_step_s: float | None = None
        self._config = config
        self._command = DEFAULT_COMMAND if command is None else command
        self._first = first
        self._start_timeout_s = start_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._restart_delay_s = self._delay_s = restart_delay_s
        self._budget = PixelBudget(pixel_budget_bytes)
        self._quarantine = Quarantine()
        self._requests: dict[str, RequestInFlight] = {}
        self._prompts = PromptsInFlight(self._forget_prompt)
        self._callbacks: list[Callable[[EngineState], None]] = []
        self._child: EngineChild | None = None
        self._loaded = False
        self._load_error: str | None = None
        self._progress = 0
        self._advanced = 0.0
        self._supervisor: asyncio.Task[None] | None = None
        self._first_load: asyncio.Future[None] | None = None

    # ---- the interface of Engine, documented there ----

    @property
    def pid(self) -> int | None:
        """See `Engine`."""
        return None if self._child is None else self._child.pid

    @property
    def pixel_bytes_in_flight(self) -> int:
        """See `Engine`."""
        return self._budget.used_bytes

    def on_state_change(self, callback: Callable[[EngineState], None]) -> None:
        """See `Engine`."""
        self._callbacks.append(callback)

    async def start(self) -> None:
        """See `Engine`."""
        if self._first_load is None:
            self._first_load = asyncio.get_running_loop().create_future()
            self._supervisor = asyncio.create_task(self._supervise(), name="engine supervisor")
            self._supervisor.add_done_callback(self._on_supervisor_done)
        await asyncio.shield(self._first_load)

    async def close(self) -> None:
        """See `Engine`."""
        if self.state is not EngineState.CLOSED:
            self._down(EngineState.CLOSED, "the engine was closed", blame=False)
            self._settle_start("the engine was closed while it was starting")
            if self._supervisor is not None:
                self._supervisor.cancel()
        if self._supervisor is not None:
            await asyncio.wait([self._supervisor])

    async def abort(self, request_id: str, choice_index: int | None = None) -> None:
        """See `Engine`."""
        flight = self._requests.get(request_id)
        if flight is None:
            return
        if flight.abandoned:  # already aborted: this abort is for the request that waits for the id
            flight.next_aborted |= choice_index is None
        elif flight.sent:
            self._send(wire.Abort(request_id, choice_index))
        else:
            flight.push_aborted(choice_index)
            if flight.over.is_set():
                self._forget(flight)

    async def generate(
        self,
        request: EngineRequest,
        pixels: list[bytes | memoryview],
        *,
        computed: Callable[[], None] = nothing,
    ) -> AsyncGenerator[ChoiceOutput, None]:
        """See `Engine`."""
        if not await self._wait_for_id(request.request_id):
            for choice_index in range(request.num_choices):
                yield ChoiceOutput.aborted(request.request_id, choice_index)
            return
        flight = self._admit(request, sum(memoryview(image).nbytes for image in pixels))
        flight.computed = computed
        try:
            # An abort or an engine failure cancels the reservation; `wait` then returns instead of raising.
            await asyncio.wait([flight.reservation])
            pixel_fd = None
            if flight.pixel_bytes and not flight.over.is_set():
                pixel_fd = await _pixel_fd(tuple(pixels))
            pixels.clear()
            self._submit(flight, pixel_fd)
            unfinished = request.num_choices
            while unfinished:
                output = await flight.next()
                unfinished -= output.finish_reason is not None
                yield output
        finally:
            self._leave(flight)

    async def prepare(
        self, source: PromptSource, pixels: Sequence[bytes | memoryview]
    ) -> PromptLayout:
        """See `PreparingEngine`."""
        if self.state is not EngineState.READY:
            raise self._unavailable()
        pixel_bytes = sum(memoryview(image).nbytes for image in pixels)
        prompt = self._prompts.begin(source, pixel_bytes, self._reserve(source, pixel_bytes))
        try:
            # The failure of the engine cancels the reservation; `wait` then returns instead of raising.
            await asyncio.wait([prompt.reservation])
            pixel_fd = None
            if pixel_bytes and not prompt.layout.done():
                pixel_fd = await _pixel_fd(tuple(pixels))
            child = self._child
            if not prompt.layout.done() and child is not None:
                child.send(wire.Prepare(prompt.number, source, pixel_bytes), pixel_fd)
                prompt.sent = True
            elif pixel_fd is not None:
                os.close(pixel_fd)
            return await prompt.layout
        finally:
            self._prompts.leave(prompt)

    # ---- requests ----

    async def _wait_for_id(self, request_id: str) -> bool:
        """Waits for an abandoned request with the same id, so that a caller's retry does not collide with it.

        Returns:
            False if the new request was aborted while it waited.
        """
        while (flight := self._requests.get(request_id)) is not None and flight.abandoned:
            await flight.over.wait()
            if flight.next_aborted:
                return False
        return True

    def _admit(self, request: EngineRequest, pixel_bytes: int) -> RequestInFlight:
        if self.state is not EngineState.READY:
            raise self._unavailable()
        if request.request_id in self._requests:
            raise RequestIdInUseError(
                f"request_id {request.request_id!r} is used by a request in flight; choose another one."
            )
        if any(span.pixel_offset + span.pixel_bytes > pixel_bytes for span in request.images):
            raise ValueError("an image span lies outside of the given pixels")
        flight = RequestInFlight(request, pixel_bytes, self._reserve(request, pixel_bytes))
        self._requests[request.request_id] = flight
        return flight

    def _reserve(self, asked: Asked, pixel_bytes: int) -> asyncio.Future[None]:
        """Reserves the bytes of what the quarantine admits."""
        reservation = self._budget.reserve(pixel_bytes)
        try:
            self._check_quarantine(asked)
        except ServiceError:
            self._budget.give_back(pixel_bytes, reservation)
            raise
        return reservation

    def _check_quarantine(self, asked: Asked) -> None:
        match self._quarantine.admit(asked):
            case Verdict.REFUSED:
                raise InternalError(
                    f"This request was in flight at {Quarantine.MAX_DEATHS} failures of the engine and is refused for "
                    f"{Quarantine.FORGIVEN_AFTER_S:.0f} s after the last one."
                )
            case Verdict.WAITS:
                raise EngineUnavailableError(
                    "This request was in flight when the engine failed; it is computed again as soon as another such"
                    " request has been answered.",
                    retry_after_s=1.0,
                    repeatable=False,
                )

    def _submit(self, flight: RequestInFlight, pixel_fd: int | None) -> None:
        """Sends the request, unless it ended while it waited."""
        child = self._child
        if flight.over.is_set() or child is None:
            if pixel_fd is not None:
                os.close(pixel_fd)
            return
        request = flight.request
        child.send(wire.Add(request, flight.pixel_bytes), pixel_fd)
        flight.sent = True
        for choice_index in set(range(request.num_choices)) - flight.open_choices:
            self._send(wire.Abort(request.request_id, choice_index))  # aborted while it waited

    def _leave(self, flight: RequestInFlight) -> None:
        """Aborts what the engine still computes; its pixels count until the engine confirms the abort."""
        if flight.over.is_set():
            return
        if flight.sent:
            flight.abandoned = True
            self._send(wire.Abort(flight.request.request_id))
        else:
            self._forget(flight)

    def _forget(self, flight: RequestInFlight, *, answered: bool = False) -> None:
        del self._requests[flight.request.request_id]
        self._budget.give_back(flight.pixel_bytes, flight.reservation)
        self._quarantine.leave(flight.request, answered=answered)
        flight.computed()

    def _forget_prompt(self, prompt: PromptInFlight, answered: bool) -> None:
        self._budget.give_back(prompt.pixel_bytes, prompt.reservation)
        self._quarantine.leave(prompt.source, answered=answered)

    def _send(self, command: wire.Command) -> None:
        if self._child is not None:
            self._child.send(command)

    # ---- messages of the engine ----

    def _on_event(self, event: wire.Event) -> None:
        if self.state is EngineState.CLOSED:
            return
        self._note_progress(event)
        match event:
            case wire.Outputs(outputs=outputs):
                for output in outputs:
                    self._on_output(output)
            case wire.Heartbeat(stats=stats):
                self.stats = stats
                self.last_step_s = time.monotonic()
            case wire.Loaded(ready=ready):
                self.ready = ready
                self._loaded = True
                self._set_state(EngineState.READY)
                self._settle_start(None)
            case wire.LoadFailed(reason=reason):
                self._load_error = reason
            case wire.Prepared():
                self._prompts.settle(event)

    def _note_progress(self, event: wire.Event) -> None:
        """Notes that the engine is alive, and unless the event is a pulse without progress, when it last advanced."""
        if self.state is EngineState.SILENT:
            self._set_state(EngineState.READY)
        if isinstance(event, wire.Pulse):
            if event.progress == self._progress:
                return
            self._progress = event.progress
        self._advanced = time.monotonic()

    def _on_output(self, output: ChoiceOutput) -> None:
        flight = self._requests.get(output.request_id)
        if flight is None:
            return
        flight.push(output)
        if flight.over.is_set():
            self._forget(flight, answered=not flight.unanswered_choices)

    # ---- supervision of the process ----

    async def _supervise(self) -> None:
        """Keeps an engine running until `close`, or until it fails to load too often."""
        failed_loads = 0
        while True:
            lifetime_s, cause, reason = await self._live_once()
            if self._loaded:
                failed_loads = 0
                if lifetime_s >= HEALTHY_AFTER_S:
                    self._delay_s = self._restart_delay_s
            else:
                failed_loads += 1
                self._do_without_graphs()
            never_up = self.ready is None
            if failed_loads >= MAX_FAILED_LOADS or (never_up and self._load_error is not None):
                logger.error("the engine failed for good: %s", reason)
                self._down(EngineState.FAILED, reason)
                self._settle_start(reason)
                return
            logger.error("the engine was lost: %s; restart in %.1f s", reason, self._delay_s)
            await asyncio.sleep(self._delay_s)
            self._delay_s = min(2 * self._delay_s, MAX_RESTART_DELAY_S)
            self.restarts[cause] += 1

    def _do_without_graphs(self) -> None:
        """Has the next engine capture no graphs, if this one told nothing: it may have died of that."""
        may_have_any = self._config.device != "cpu" and self._config.cuda_graphs != "off"
        if self._load_error is None and may_have_any:
            self._config = replace(self._config, cuda_graphs="off")
            logger.warning("an engine ended while it loaded: the next ones use no CUDA graphs")

    async def _live_once(self) -> tuple[float, str, str]:
        """Starts the engine, waits until it ends and cleans up.

        Returns:
            Seconds it ran after loading, the cause (one of `RESTART_CAUSES`), and why it ended.
        """
        self._loaded = False
        self._load_error = None
        try:
            process, self._first = self._first or EngineProcess(self._command), None
            child = EngineChild(process, self._on_event)
        except OSError as error:
            return 0.0, "not_loaded", f"it cannot be started: {error}"
        self._child = child
        try:
            child.send(wire.Start(self._config))
            lifetime_s, is_stalled, reason = await self._watch(child)
            waiting = EngineState.STARTING if self.ready is None else EngineState.RESTARTING
            self._down(waiting, reason, blame=self._loaded)
        finally:
            self._child = None
            closing = self.state is EngineState.CLOSED
            status = await child.reap(CLOSE_GRACE_S if closing else 0.0)
            level = logging.DEBUG if closing and status == 0 else logging.INFO
            logger.log(level, "engine process %d ended with status %d", child.pid, status)
        cause = "stalled" if is_stalled else "ended"
        if not self._loaded:
            cause = "not_loaded"
        return lifetime_s, cause, self._load_error or reason

    async def _watch(self, child: EngineChild) -> tuple[float, bool, str]:
        """Waits until the engine ends, or makes no progress in two checks in a row.

        One check is not enough: if this process itself was stopped, the heartbeats are still in the socket.

        Returns:
            Seconds it ran after loading, whether it made no progress, and why it is given up.
        """
        started = time.monotonic()
        loaded_at: float | None = None
        strikes = quiet = 0
        while strikes < 2:
            await asyncio.wait([child.lost], timeout=_WATCH_S)
            now = time.monotonic()
            if loaded_at is None and self._loaded:
                loaded_at = now
            up_s = 0.0 if loaded_at is None else now - loaded_at
            if child.lost.done():
                return up_s, False, child.lost.result()
            if child.has_exited():
                return up_s, False, "its process ended"
            quiet = quiet + 1 if now - child.last_event > SILENT_AFTER_S else 0
            if quiet >= 2 and self.state is EngineState.READY:
                logger.error("the engine is silent; no request is accepted until it answers")
                self._set_state(EngineState.SILENT)
            stuck_s = now - (self._advanced if self._loaded else started)
            allowed_s = self._stall_timeout_s if self._loaded else self._start_timeout_s
            strikes = strikes + 1 if stuck_s > allowed_s else 0
        if loaded_at is None:
            return up_s, True, f"the model was not loaded within {self._start_timeout_s:.0f} s"
        return up_s, True, f"it made no progress for {self._stall_timeout_s:.0f} s"

    def _on_supervisor_done(self, supervisor: asyncio.Task[None]) -> None:
        """Logs a defect of the supervisor and ends all requests, which would wait for ever."""
        if supervisor.cancelled() or supervisor.exception() is None:
            return
        logger.critical("the supervisor of the engine failed", exc_info=supervisor.exception())
        self._down(EngineState.FAILED, "a defect of the supervisor")
        self._settle_start("a defect of the supervisor")

    def _down(self, state: EngineState, reason: str, *, blame: bool = False) -> None:
        """Enters `state` after the engine is gone and ends every request."""
        if self.state is EngineState.CLOSED:
            return
        if blame:
            requests = [flight.request for flight in self._requests.values() if flight.sent]
            self._quarantine.blame([*requests, *self._prompts.sent])
        self.stats = EngineStats()
        self._set_state(state)
        self._prompts.fail(self._unavailable(was_sent=True))
        if self._requests:
            logger.error("%d requests end with the engine: %s", len(self._requests), reason)
        for flight in tuple(self._requests.values()):
            flight.fail(self._unavailable(was_sent=flight.sent))
            self._forget(flight)

    def _unavailable(self, *, was_sent: bool = False) -> EngineUnavailableError:
        final = self.state in (EngineState.FAILED, EngineState.CLOSED)
        load_s = 0.0 if self.ready is None else self.ready.load_seconds
        what = "has failed" if final else "is starting"
        if was_sent:
            what = "was lost while it computed the answer"
        return EngineUnavailableError(
            f"The engine {what}." if final else f"The engine {what}; try again later.",
            retry_after_s=None if final else max(1.0, self._delay_s + load_s),
            repeatable=not was_sent,
        )

    def _set_state(self, state: EngineState) -> None:
        if state is self.state:
            return
        self.state = state
        for callback in self._callbacks:
            callback(state)

    def _settle_start(self, problem: str | None) -> None:
        """Lets `start` return or raise."""
        if self._first_load is None or self._first_load.done():
            return
        if problem is None:
            self._first_load.set_result(None)
        else:
            self._first_load.set_exception(EngineStartError(problem))
            self._first_load.exception()  # marks it as retrieved: `start` may not be waiting


async def _pixel_fd(pixels: Sequence[bytes | memoryview]) -> int:
    """Copies pixels into a memfd, in a thread: tens of megabytes would block every stream."""
    copying = asyncio.get_running_loop().run_in_executor(None, wire.write_pixels, pixels)
    try:
        return await asyncio.shield(copying)
    except asyncio.CancelledError:
        copying.add_done_callback(_close_copy)  # the thread cannot be stopped
        raise


def _close_copy(copying: asyncio.Future[int]) -> None:
    with contextlib.suppress(OSError, asyncio.CancelledError):
        os.close(copying.result())
