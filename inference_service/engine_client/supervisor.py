"""Keeps an engine process running: loads it, watches it, and starts another one when it is lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
import logging
import time
from typing import Final

from inference_service.engine_client.child import EngineChild, EngineProcess
from inference_service.engine_client.interface import EngineStartError, EngineState
from inference_service.engine_protocol import wire
from inference_service.engine_protocol.messages import EngineConfig, EngineReady, EngineStats
from inference_service.errors import EngineUnavailableError


MAX_RESTART_DELAY_S: Final = 30.0
HEALTHY_AFTER_S: Final = 60.0
MAX_FAILED_LOADS: Final = 5
CLOSE_GRACE_S: Final = 5.0
SILENT_AFTER_S: Final = 3.0
"""An engine process sends something every second, whatever it computes."""
_WATCH_S: Final = 0.25

logger = logging.getLogger(__name__)


class EngineSupervisor:
    """The life of an engine, process after process. Belongs to one event loop; start it in the loop's thread.

    Attributes:
        state: The current state.
        ready: The last loaded engine; None before the first load.
        stats: Counters of the last heartbeat; all zero while no engine runs.
        restarts: Number of restarts by one of `RESTART_CAUSES`.
        last_step_s: When the last heartbeat came, as `time.monotonic()`.
        child: The process; None while there is none.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        command: Sequence[str],
        first: EngineProcess | None,
        start_timeout_s: float,
        stall_timeout_s: float,
        restart_delay_s: float,
        on_event: Callable[[wire.Event], None],
        on_lost: Callable[[str, bool], None],
    ) -> None:
        """Does not start the engine yet; `start` does.

        Args:
            config: Configuration of every engine process.
            command: Program and arguments of the engine process.
            first: A process of this command that runs already, for the first start.
            start_timeout_s: Maximum time to load the model.
            stall_timeout_s: An engine that makes no progress for this long, not even within a step, is killed.
            restart_delay_s: First delay of the exponential backoff.
            on_event: Called with every message about requests and prompts.
            on_lost: Called when the engine is gone, in the new state: with the reason, and whether it was loaded and
                failed, so that what it had in flight may be the cause.
        """
        self.state = EngineState.STARTING
        self.ready: EngineReady | None = None
        self.stats = EngineStats()
        self.restarts: Counter[str] = Counter()
        self.last_step_s: float | None = None
        self.child: EngineChild | None = None
        self._config = config
        self._command = command
        self._first = first
        self._start_timeout_s = start_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._restart_delay_s = self._delay_s = restart_delay_s
        self._pass_on = on_event
        self._on_lost = on_lost
        self._callbacks: list[Callable[[EngineState], None]] = []
        self._loaded = False
        self._load_error: str | None = None
        self._progress = 0
        self._advanced = 0.0
        self._task: asyncio.Task[None] | None = None
        self._first_load: asyncio.Future[None] | None = None

    def on_state_change(self, callback: Callable[[EngineState], None]) -> None:
        """See `Engine`."""
        self._callbacks.append(callback)

    async def start(self) -> None:
        """See `Engine`."""
        if self._first_load is None:
            self._first_load = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._supervise(), name="engine supervisor")
            self._task.add_done_callback(self._on_done)
        await asyncio.shield(self._first_load)

    async def close(self) -> None:
        """See `Engine`."""
        if self.state is not EngineState.CLOSED:
            self._down(EngineState.CLOSED, "the engine was closed", blame=False)
            self._settle_start("the engine was closed while it was starting")
            if self._task is not None:
                self._task.cancel()
        if self._task is not None:
            await asyncio.wait([self._task])

    def send(self, command: wire.Command) -> None:
        """Sends a command, if there is an engine."""
        if self.child is not None:
            self.child.send(command)

    def unavailable(self, *, was_sent: bool = False) -> EngineUnavailableError:
        """The error of a request that the engine cannot compute now, or that was lost with it."""
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

    # ---- what the engine sends ----

    def _on_event(self, event: wire.Event) -> None:
        if self.state is EngineState.CLOSED:
            return
        self._note_progress(event)
        match event:
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
            case _:
                self._pass_on(event)

    def _note_progress(self, event: wire.Event) -> None:
        """Notes that the engine is alive, and unless the event is a pulse without progress, when it last advanced."""
        if self.state is EngineState.SILENT:
            self._set_state(EngineState.READY)
        if isinstance(event, wire.Pulse):
            if event.progress == self._progress:
                return
            self._progress = event.progress
        self._advanced = time.monotonic()

    # ---- its lives ----

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
        self.child = child
        try:
            child.send(wire.Start(self._config))
            lifetime_s, is_stalled, reason = await self._watch(child)
            waiting = EngineState.STARTING if self.ready is None else EngineState.RESTARTING
            self._down(waiting, reason, blame=self._loaded)
        finally:
            self.child = None
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

    def _on_done(self, supervisor: asyncio.Task[None]) -> None:
        """Logs a defect of the supervisor and ends all requests, which would wait for ever."""
        if supervisor.cancelled() or supervisor.exception() is None:
            return
        logger.critical("the supervisor of the engine failed", exc_info=supervisor.exception())
        self._down(EngineState.FAILED, "a defect of the supervisor")
        self._settle_start("a defect of the supervisor")

    def _down(self, state: EngineState, reason: str, *, blame: bool = False) -> None:
        """Enters `state` after the engine is gone, and tells whoever waits for it."""
        if self.state is EngineState.CLOSED:
            return
        self.stats = EngineStats()
        self._set_state(state)
        self._on_lost(reason, blame)

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
