"""What the front sees of an engine: its states and its protocol."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from enum import Enum
from typing import Protocol

from inference_service.engine_protocol.messages import (
    ChoiceOutput,
    EngineReady,
    EngineRequest,
    EngineStats,
)


class EngineState(Enum):
    """Where the engine is in its life. FAILED and CLOSED are final."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    CLOSED = "closed"


class EngineStartError(RuntimeError):
    """The engine never came up; the text says why, for the operator."""


class Engine(Protocol):
    """What the local backend needs of an engine."""

    @property
    def state(self) -> EngineState:
        """The current state."""

    @property
    def ready(self) -> EngineReady | None:
        """What was loaded last; None before the first load is done, kept while the engine restarts."""

    @property
    def stats(self) -> EngineStats:
        """Counters of the last heartbeat; all zero while no engine is up."""

    @property
    def restarts(self) -> int:
        """How often the process was started again."""

    @property
    def pid(self) -> int | None:
        """Process id, if there is a process."""

    @property
    def last_heartbeat_age_s(self) -> float:
        """Seconds since the engine last gave a sign of life (or was started); infinite without a process."""

    @property
    def pixel_bytes_in_flight(self) -> int:
        """Bytes of pixels that the engine may be holding."""

    def generate(
        self, request: EngineRequest, pixels: Sequence[bytes | memoryview]
    ) -> AsyncGenerator[ChoiceOutput, None]:
        """Computes all choices of a request; ends after each of them gave an item with a finish reason.

        Nothing happens before the first item is asked for. A consumer that may stop early closes the iterator
        (`contextlib.aclosing`): that, and cancellation, abort the request in the engine. Outputs that a slow
        consumer has not taken yet are merged, choice by choice.

        Args:
            request: The request.
            pixels: RGB uint8 images, to be laid one after the other as `ImageSpan.pixel_offset` says.

        Raises:
            EngineUnavailableError: The engine is not ready, or died before the request ended.
            ImageTooLargeError: The images alone are over the whole pixel budget.
            RequestIdInUseError: A request with this id is in flight.
            InternalError: This request was in flight at two deaths of the engine.
        """

    async def abort(self, request_id: str, choice_index: int | None = None) -> None:
        """Ends one choice of a request, or (None) all of them, as ABORTED. Unknown ids are ignored."""

    async def start(self) -> None:
        """Starts the engine and waits until it is ready.

        Raises:
            EngineStartError: It cannot be started; the state is FAILED.
        """

    async def close(self) -> None:
        """Ends the engine process and all requests."""

    def on_state_change(self, callback: Callable[[EngineState], None]) -> None:
        """Has `callback` called with every new state; it must not raise."""
