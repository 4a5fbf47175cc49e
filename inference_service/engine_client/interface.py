"""The interface of an engine for the front, and its states."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from enum import Enum
from typing import Protocol

from inference_service.engine_protocol.messages import (
    ChoiceOutput,
    EngineReady,
    EngineRequest,
    EngineStats,
    PromptLayout,
    PromptSource,
)


def nothing(*_: object) -> None:
    """Does nothing, whatever it is told."""


class EngineState(Enum):
    """The state of the engine. FAILED and CLOSED are final; a SILENT one runs, but has sent nothing for seconds."""

    STARTING = "starting"
    READY = "ready"
    SILENT = "silent"
    RESTARTING = "restarting"
    FAILED = "failed"
    CLOSED = "closed"


class EngineStartError(RuntimeError):
    """The engine could not be started; the message is for the operator."""


class Engine(Protocol):
    """An engine, as the local backend uses it."""

    @property
    def state(self) -> EngineState:
        """The current state."""

    @property
    def ready(self) -> EngineReady | None:
        """The last loaded engine; None before the first load, kept while the engine restarts."""

    @property
    def stats(self) -> EngineStats:
        """Counters of the last heartbeat; all zero while no engine runs."""

    @property
    def restarts(self) -> Mapping[str, int]:
        """Number of restarts of the process by one of `RESTART_CAUSES`."""

    @property
    def last_step_s(self) -> float | None:
        """When the last heartbeat came, as `time.monotonic()`: the engine sends them between its steps."""

    @property
    def pid(self) -> int | None:
        """Process id, if there is a process."""

    @property
    def pixel_bytes_in_flight(self) -> int:
        """Bytes of pixels in flight to the engine."""

    def generate(
        self,
        request: EngineRequest,
        pixels: list[bytes | memoryview],
        *,
        counted: Callable[[int], None] = nothing,
        computed: Callable[[], None] = nothing,
    ) -> AsyncGenerator[ChoiceOutput, None]:
        """Computes all choices of a request; ends after each has yielded an output with a finish reason.

        The request starts with the first iteration. A consumer that may stop early closes the iterator
        (`contextlib.aclosing`): that, and cancellation, abort the request in the engine. Outputs that a slow
        consumer has not taken yet are merged, choice by choice, into pieces of some hundred tokens.

        Args:
            request: The request.
            pixels: RGB uint8 images; concatenated, they are the buffer that `ImageSpan.pixel_offset` refers to. The
                list is emptied when they are copied.
            counted: Called with the number of tokens of each output, when it comes from the engine: whether or not the
                consumer takes it, or is still there.
            computed: Called when the engine computes the request no more, though outputs may wait for the consumer.

        Raises:
            EngineUnavailableError: The engine is not ready, or failed before the request ended.
            ImageTooLargeError: The images exceed the whole pixel budget.
            RequestIdInUseError: A request with this id is in flight.
            InternalError: This request was in flight at two failures of the engine.
            DeadlineError: Too many outputs with log probabilities waited for the consumer.
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
        """Registers a callback for every new state; it must not raise."""


class PreparingEngine(Engine, Protocol):
    """An engine that makes prompts of their sources itself."""

    async def prepare(
        self, source: PromptSource, pixels: Sequence[bytes | memoryview], caller: str = ""
    ) -> PromptLayout:
        """Prepares a prompt; a request with this source has the same token ids.

        Args:
            source: The prompt.
            pixels: RGB uint8 media; concatenated, they are the buffer that `PromptMedia.pixel_offset` refers to.
            caller: Whose it is, opaque: callers share the room for pixels fairly, and take turns.

        Raises:
            EngineUnavailableError: The engine is not ready, or failed meanwhile.
            ServiceError: The engine refused the prompt.
        """
