"""Constrained answers in the engine: compiles constraints beside the loop, while their requests wait."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
import logging
import threading
from typing import TYPE_CHECKING, Final

from inference_service.constraint import Constraint
from inference_service.engine.constraint_state import ConstraintState, over_budget
from inference_service.engine.sequence import Sequence
from inference_service.errors import ConstraintFailedError
from inference_service.grammar.matcher import GrammarError, new_matcher, raise_error


if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_THREADS: Final = 2
_COMPILED: Final = 32
"""Compiled constraints to keep; requests of one application mostly have the same."""

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


class Grammars:
    """Compiles constraints in threads; the loop would stand still meanwhile."""

    def __init__(self, load_vocabulary: Callable[[], LLTokenizer]) -> None:
        """Loads nothing yet: the vocabulary takes a second, and most services never need it."""
        self._load_vocabulary = load_vocabulary
        self._vocabulary: LLTokenizer | None = None
        self._loading = threading.Lock()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="grammars")
        self._compiled: OrderedDict[bytes, Future[LLMatcher]] = OrderedDict()

    def compiled(self, constraint: Constraint) -> Future[LLMatcher]:
        """A matcher at the beginning, to be copied for each answer; the future may raise what compiling raises."""
        key = constraint.digest
        future = self._compiled.pop(key, None)
        if future is None or (future.done() and future.exception() is not None):
            future = self._threads.submit(self._compile, constraint)
        self._compiled[key] = future
        if len(self._compiled) > _COMPILED:
            self._compiled.popitem(last=False)
        return future

    def _compile(self, constraint: Constraint) -> LLMatcher:
        with self._loading:
            if self._vocabulary is None:
                self._vocabulary = self._load_vocabulary()
        matcher = new_matcher(self._vocabulary, constraint)
        # The first mask costs the most, of every answer; copies know it.
        matcher.compute_bitmask()
        raise_error(matcher)
        return matcher


@dataclass(frozen=True, slots=True)
class HeldRequest:
    """A request whose constraint is being compiled.

    Attributes:
        sequences: Its choices; those that are aborted meanwhile are removed.
        pixels: RGB uint8 of its images.
        matcher: The compiled constraint.
    """

    sequences: list[Sequence]
    pixels: memoryview
    matcher: Future[LLMatcher]

    def constrain(self) -> None:
        """Gives every choice a matcher of its own.

        Raises:
            ConstraintFailedError: The constraint could not be compiled.
        """
        request = self.sequences[0].request
        try:
            matcher = self.matcher.result()
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
        matcher = self._grammars.compiled(constraint)
        request_id = sequences[0].request.request_id
        self._requests[request_id] = HeldRequest(sequences, pixels, matcher)

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

    def take_ready(self) -> list[HeldRequest]:
        """The requests whose constraint is compiled; they are not held any more."""
        ready = [name for name, held in self._requests.items() if held.matcher.done()]
        return [self._requests.pop(name) for name in ready]

    def wait(self, timeout_s: float) -> None:
        """Waits until one of them is ready."""
        wait(
            [held.matcher for held in self._requests.values()],
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
    sequences: Iterable[Sequence],
) -> Iterator[tuple[Sequence, ConstraintFailedError]]:
    """The answers of a step that must end for what their constraints cost, with their errors."""
    rows = {
        one.constraint: one for one in sequences if one.constraint and one.finish_reason is None
    }
    for state in over_budget(rows):
        error = GrammarError("it takes more time than the answers beside it can spare")
        yield rows[state], constraint_failed(rows[state], error, _TOO_SLOW)
