"""What the server sees of an engine, wherever it computes.

Owns the states of an engine and its protocol.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from enum import Enum
from typing import Protocol

from inference_service.engine_protocol.messages import (
    EngineReady,
    EngineRequest,
    EngineStats,
    SequenceOutput,
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
    """What the server needs of an engine."""

    @property
    def state(self) -> EngineState:
        """State of now."""

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
    ) -> AsyncGenerator[SequenceOutput, None]:
        """Computes one sequence; ends after the item with a finish reason.

        Nothing happens before the first item is asked for. A consumer that may stop early closes the iterator
        (`contextlib.aclosing`): that, and cancellation, abort the sequence in the engine. News that wait for a slow
        consumer are merged into one item.

        Args:
            request: The sequence.
            pixels: RGB uint8 images, to be laid one after the other as `ImageSpan.pixel_offset` says.

        Raises:
            EngineUnavailableError: The engine is not ready, or died before the sequence ended.
            ImageTooLargeError: The images alone are over the whole pixel budget.
            RequestIdInUseError: A sequence of this id is in flight.
            InternalError: This request was in flight at two deaths of the engine.
        """

    async def abort(self, sequence_id: str) -> None:
        """Ends a sequence; its iterator ends with ABORTED. Unknown ids are ignored."""

    async def start(self) -> None:
        """Starts the engine and waits until it is ready.

        Raises:
            EngineStartError: It cannot be started; the state is FAILED.
        """

    async def close(self) -> None:
        """Ends the engine process and all sequences."""

    def on_state_change(self, callback: Callable[[EngineState], None]) -> None:
        """Has `callback` called with every new state; it must not raise."""
