"""Constrained answers in the engine: holds their requests until the constraints are compiled, and ends the failed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass, replace
import logging
from typing import Final

from inference_service.constraint import Constraint
from inference_service.engine.compiling import Compilation, Grammars
from inference_service.engine.constraint_state import ConstraintState, over_budget
from inference_service.engine.sequence import Sequence
from inference_service.errors import ConstraintFailedError
from inference_service.grammar.matcher import GrammarError


_DEAD_END: Final = (
    "The answer cannot be continued in the form that the constraint asks for: the constraint is too complex, or no"
    " token of the model fits it."
)
_TOO_SLOW: Final = (
    "The answer cannot be continued in the form that the constraint asks for: the constraint is too complex, so that"
    " each token takes too much time. A grammar with fewer ways to read the same text takes less, and so does a"
    " shorter answer."
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeldRequest:
    """A request whose constraint is being compiled.

    Attributes:
        sequences: Its choices; those that are aborted meanwhile are removed.
        pixels: RGB uint8 of its images.
        compilation: The constraint.
    """

    sequences: list[Sequence]
    pixels: memoryview
    compilation: Compilation

    def constrain(self) -> None:
        """Gives every choice a matcher of its own.

        Raises:
            ConstraintFailedError: The constraint could not be compiled.
        """
        request = self.sequences[0].request
        try:
            matcher = self.compilation.matcher.result()
        except Exception as error:  # also a vocabulary that cannot be read
            logger.exception(
                {"message": "a constraint cannot be compiled", "request_id": request.request_id}
            )
            raise ConstraintFailedError("The constraint cannot be compiled.") from error
        for sequence in self.sequences:
            sequence.constraint = ConstraintState(matcher.deep_copy(), request.constraint_after)


class HeldRequests:
    """The requests that wait for their constraint, in order of arrival."""

    def __init__(self, grammars: Grammars) -> None:
        self._grammars = grammars
        self._requests: dict[str, HeldRequest] = {}

    def __contains__(self, request_id: str) -> bool:
        """Whether this request is held."""
        return request_id in self._requests

    @property
    def num_sequences(self) -> int:
        """Number of choices that wait."""
        return sum(len(held.sequences) for held in self._requests.values())

    def hold(self, sequences: list[Sequence], constraint: Constraint, pixels: memoryview) -> None:
        """Holds the choices of a request until its constraint is compiled."""
        if sequences[0].request.constraint_after is not None:
            constraint = replace(constraint, after_break=True)
        request = sequences[0].request
        compilation = self._grammars.wait_for(constraint, request.caller)
        self._requests[request.request_id] = HeldRequest(sequences, pixels, compilation)

    def drop(self, request_id: str, choice_index: int | None) -> None:
        """Forgets one choice of a request, or (None) all."""
        held = self._requests.get(request_id)
        if held is None:
            return
        held.sequences[:] = [
            sequence
            for sequence in held.sequences
            if choice_index not in (None, sequence.choice_index)
        ]
        if not held.sequences:
            del self._requests[request_id]
            self._grammars.leave(held.compilation)

    def take_ready(self) -> list[HeldRequest]:
        """The requests whose constraint is compiled; they are not held any more."""
        names = [name for name, held in self._requests.items() if held.compilation.matcher.done()]
        ready = [self._requests.pop(name) for name in names]
        for held in ready:
            self._grammars.leave(held.compilation)
        return ready

    def wait(self, timeout_s: float) -> None:
        """Waits until one of them is ready."""
        wait(
            [held.compilation.matcher for held in self._requests.values()],
            timeout=timeout_s,
            return_when=FIRST_COMPLETED,
        )


def constraint_failed(
    sequence: Sequence, error: GrammarError, message: str = _DEAD_END
) -> ConstraintFailedError:
    """The error for an answer that cannot go on in its constraint, with this message; the log tells why."""
    logger.warning(
        {
            "message": f"a constraint failed: {error}",
            "request_id": sequence.request.request_id,
        }
    )
    return ConstraintFailedError(message)


def too_expensive(
    sequences: Iterable[Sequence], running: Iterable[Sequence] = ()
) -> Iterator[tuple[Sequence, ConstraintFailedError]]:
    """The answers that must end for what their constraints cost, with their errors.

    Args:
        sequences: Those of a step.
        running: All that run.
    """
    rows = _by_state(sequences)
    others = {state: one for state, one in _by_state(running).items() if state not in rows}
    for state in over_budget(rows, others):
        sequence = rows.get(state) or others[state]
        error = GrammarError("it takes more time than the answers beside it can spare")
        yield sequence, constraint_failed(sequence, error, _TOO_SLOW)


def _by_state(sequences: Iterable[Sequence]) -> dict[ConstraintState, Sequence]:
    return {
        one.constraint: one for one in sequences if one.constraint and one.finish_reason is None
    }
