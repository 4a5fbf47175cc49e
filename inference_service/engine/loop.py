"""The engine loop: applies commands to the core, steps it and sends its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import logging
import time
from typing import Final, Protocol, runtime_checkable

from inference_service.engine_protocol import wire
from inference_service.engine_protocol.messages import (
    ChoiceOutput,
    EngineFailure,
    EngineReady,
    EngineRequest,
    EngineStats,
    FinishReason,
    PromptLayout,
    PromptSource,
)
from inference_service.errors import InternalError, ServiceError


HEARTBEAT_S: Final = 0.25
_SHORT_S: Final = 0.02
"""Prompts that are prepared in less time cost the answers so little that one is prepared in every turn."""
_DEFECT: Final = EngineFailure.of(InternalError("The engine failed on this request."))

logger = logging.getLogger(__name__)


class Core(Protocol):
    """The interface of `engine.core.EngineCore` for the loop; tests use a fake."""

    @property
    def ready(self) -> EngineReady:
        """The loaded engine."""

    @property
    def stats(self) -> EngineStats:
        """The current counters."""

    @property
    def has_work(self) -> bool:
        """Whether any choice is unfinished."""

    def add(self, request: EngineRequest, pixels: memoryview | bytes) -> None:
        """Queues all choices of a request; if it is refused, none of them.

        Raises:
            ServiceError: This request cannot run.
        """

    def abort(self, request_id: str, choice_index: int | None = None) -> None:
        """Drops one choice of a request, or (None) all, and frees their memory; unknown ids are ignored."""

    def step(self) -> list[ChoiceOutput]:
        """Computes one batch."""


@runtime_checkable
class PreparingCore(Core, Protocol):
    """A core that makes prompts of their sources itself."""

    def prepare(self, source: PromptSource, pixels: memoryview | bytes) -> PromptLayout:
        """Prepares a prompt, as the core does for a request with this source.

        Raises:
            ServiceError: The prompt is refused.
        """


class Inbox(Protocol):
    """The source of commands for the loop."""

    def take(self, timeout_s: float) -> Iterator[tuple[wire.Command, memoryview]]:
        """Yields all pending commands; waits up to `timeout_s` for the first one."""


class EngineLoop:
    """The engine loop: applies commands, steps the core and sends outputs, one turn at a time.

    The front always gets exactly one finish for every choice of every request that it added: the loop tracks
    unfinished choices, finishes aborted ones itself and drops later outputs of the core for them.
    """

    def __init__(self, core: Core, inbox: Inbox, send: Callable[[wire.Event], None]) -> None:
        self._core = core
        self._inbox = inbox
        self._send = send
        self._live: dict[str, set[int]] = {}  # request id -> choices that have not finished
        self._preparing: dict[int, tuple[wire.Prepare, memoryview]] = {}  # the front sends few
        self._owed_s = 0.0  # to the answers, for the time that the last prompt took
        self._turns = 0
        self._last_heartbeat = 0.0

    def turn(self) -> None:
        """Applies commands, runs one step if there is work, sends outputs and, when due, a heartbeat.

        At most one prompt is prepared in a turn, and answers get as much time as prompts: so they go on while many
        prompts, or long ones, are prepared.

        Exceptions of `Core.step` are not caught: the state of the core is then unknown, and the front starts a new
        process.
        """
        outputs: list[ChoiceOutput] = []
        is_busy = self._core.has_work or bool(self._preparing)
        for command, pixels in self._inbox.take(0.0 if is_busy else HEARTBEAT_S):
            outputs.extend(self._apply(command, pixels))
        if self._preparing and (self._owed_s <= 0.0 or not self._core.has_work):
            self._owed_s = self._prepare_next()
        if self._core.has_work:
            begin_s = time.monotonic()
            outputs.extend(self._core.step())
            self._owed_s -= time.monotonic() - begin_s
        finished = self._publish(outputs)
        self._turns += 1
        now = time.monotonic()
        if finished or now - self._last_heartbeat >= HEARTBEAT_S:
            self._last_heartbeat = now
            self._send(wire.Heartbeat(self._core.stats, self._turns))

    def _apply(self, command: wire.Command, pixels: memoryview) -> list[ChoiceOutput]:
        """Applies a command to the core and returns its immediate outputs."""
        match command:
            case wire.Add(request=request):
                self._live[request.request_id] = set(range(request.num_choices))
                return self._add(request, pixels)
            case wire.Abort(request_id=request_id, choice_index=choice_index):
                return self._abort(request_id, choice_index)
            case wire.Prepare():
                self._preparing[command.number] = (command, pixels)
                return []
            case wire.Forget(number=number):
                if self._preparing.pop(number, None) is not None:
                    self._send(wire.Prepared(number))
                return []
            case wire.Start():
                raise wire.WireError("the engine is started already")

    def _add(self, request: EngineRequest, pixels: memoryview) -> list[ChoiceOutput]:
        try:
            self._core.add(request, pixels)
        except ServiceError as error:
            failure = EngineFailure.of(error)
        except Exception:
            # A defect with one request must not end the others.
            logger.exception(
                {"message": "a request could not be added", "request_id": request.request_id}
            )
            self._core.abort(request.request_id)
            failure = _DEFECT
        else:
            return []
        return [
            _failed(request.request_id, choice_index, failure)
            for choice_index in range(request.num_choices)
        ]

    def _prepare_next(self) -> float:
        """Prepares the oldest prompt; returns the seconds that this has cost the answers."""
        begin_s = time.monotonic()
        first = next(iter(self._preparing))
        self._send(self._prepared(*self._preparing.pop(first)))
        seconds = time.monotonic() - begin_s
        return seconds if seconds > _SHORT_S else 0.0

    def _prepared(self, command: wire.Prepare, pixels: memoryview) -> wire.Prepared:
        number = command.number
        if not isinstance(self._core, PreparingCore):
            raise wire.WireError("this engine prepares no prompts")
        try:
            return wire.Prepared(number, layout=self._core.prepare(command.source, pixels))
        except ServiceError as error:
            return wire.Prepared(number, failure=EngineFailure.of(error))
        except Exception:
            logger.exception("a prompt could not be prepared")
            return wire.Prepared(number, failure=_DEFECT)

    def _abort(self, request_id: str, choice_index: int | None) -> list[ChoiceOutput]:
        """Aborts unfinished choices; those that have finished in the meantime are ignored."""
        live = sorted(self._live.get(request_id, ()))
        ended = [index for index in live if choice_index in (None, index)]
        for index in ended:
            self._core.abort(request_id, index)
        return [ChoiceOutput.aborted(request_id, index) for index in ended]

    def _publish(self, outputs: list[ChoiceOutput]) -> bool:
        """Sends the outputs of unfinished choices; returns whether one of them finished."""
        batch: list[ChoiceOutput] = []
        finished = False
        for output in outputs:
            if output.choice_index not in self._live.get(output.request_id, ()):
                continue
            batch.append(output)
            if output.finish_reason is not None:
                self._forget(output)
                finished = True
        if batch:
            try:
                self._send(wire.Outputs(tuple(batch)))
            except wire.WireError:
                self._publish_singly(batch)
                return True
        return finished

    def _publish_singly(self, batch: list[ChoiceOutput]) -> None:
        """Sends the outputs of a batch that exceeds one frame; an output that exceeds it alone fails its choice."""
        for output in batch:
            try:
                self._send(wire.Outputs((output,)))
            except wire.WireError:
                logger.exception(
                    {"message": "an output is too long", "request_id": output.request_id}
                )
                self._core.abort(output.request_id, output.choice_index)
                self._forget(output)
                failed = _failed(output.request_id, output.choice_index, _DEFECT)
                self._send(wire.Outputs((failed,)))

    def _forget(self, output: ChoiceOutput) -> None:
        """Removes the choice of this output from the unfinished ones."""
        live = self._live.get(output.request_id, set())
        live.discard(output.choice_index)
        if not live:
            self._live.pop(output.request_id, None)


def _failed(request_id: str, choice_index: int, failure: EngineFailure) -> ChoiceOutput:
    return ChoiceOutput(
        request_id=request_id,
        choice_index=choice_index,
        finish_reason=FinishReason.ERROR,
        failure=failure,
    )
