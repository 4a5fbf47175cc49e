"""Who comes next in the engine: callers by what they have had, so that the bulk of one does not delay the others.

Virtual token counters, as in Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024): a caller's counter
grows with its tokens, and the caller with the lowest one comes next. One who comes back gets at least the lowest
counter of those present, as a pause saves up nothing; so it comes before them, but not for long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping
import itertools
from typing import Final

from inference_service.engine.sequence import Sequence


_PATIENCE_S: Final = 5.0
"""When the oldest sequence of a caller of whom none runs has waited longer, it is late: see `overdue`."""


def overdue(waiting: Iterable[Sequence], running: Container[str], now_s: float) -> list[Sequence]:
    """The first waiting sequence of each caller of whom none runs, if it is late; the longest wait first.

    It is late when it has waited too long, and if it is preempted then, again at once: those that give way to it would
    come before it again and again.

    Newcomers come first, and may be small enough for the room that a large sequence waits for: many callers that come
    and go would keep it waiting for ever. So nobody is admitted before a late sequence that can have its room. While
    it cannot, because of those that were there before, the room is not left empty: others are admitted, and give way
    as soon as it can, see `overtakes`.

    Args:
        waiting: The sequences that wait.
        running: Callers of whom some run.
        now_s: The time on the clock by which the sequences wait, in seconds.
    """
    first: dict[str, Sequence] = {}
    for sequence in waiting:
        if sequence.caller not in running:
            first.setdefault(sequence.caller, sequence)
    late = [
        one
        for one in first.values()
        if one.late_since is not None or now_s - one.waits_since_s > _PATIENCE_S
    ]
    return sorted(late, key=lambda sequence: sequence.waits_since_s)


def overtakes(running: Sequence, waiting: Sequence) -> bool:
    """Whether a running sequence came after one that waits, and was admitted when that one was late already.

    It gives way to that one, however few its caller has. Those that came before do not, so nobody gives way for ever.
    """
    return (
        waiting.late_since is not None
        and running.admission >= waiting.late_since
        and running.arrived_s > waiting.arrived_s
    )


class Shares:
    """What callers have had lately."""

    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}
        self._planned: Counter[str] = Counter()
        self._present: Counter[str] = Counter()  # unfinished sequences
        self._arrivals: dict[str, int] = {}
        self._numbers = itertools.count()

    def enter(self, caller: str) -> None:
        """Counts a further sequence of a caller."""
        if caller not in self._present:
            lowest = min((self._tokens[other] for other in self._present), default=0)
            if not self._present:
                self._tokens.clear()
            # Those who are gone and would get the lowest counter anyway need not be remembered.
            self._tokens = {who: had for who, had in self._tokens.items() if had > lowest} | {
                who: self._tokens[who] for who in self._present
            }
            self._tokens.setdefault(caller, lowest)
            self._arrivals[caller] = next(self._numbers)
        self._present[caller] += 1

    def leave(self, caller: str) -> None:
        """Counts a sequence less."""
        self._present[caller] -= 1
        if not self._present[caller]:
            del self._present[caller], self._arrivals[caller]

    def begin_plan(self) -> None:
        """Forgets what was planned: what of it is computed has been charged."""
        self._planned.clear()

    def plan(self, caller: str, num_tokens: int) -> None:
        """Counts tokens of a caller until the next plan begins."""
        self._planned[caller] += num_tokens

    def charge(self, caller: str, num_tokens: int) -> None:
        """Counts tokens of a caller that is present, or takes them back: fewer than 0."""
        self._tokens[caller] = self._tokens.get(caller, 0) + num_tokens

    def first(self, callers: Iterable[str], running: Mapping[str, int]) -> str:
        """Who comes first: callers of whom nothing runs, then those that have had least, of equal ones the newest.

        Args:
            callers: Callers that are present, at least one.
            running: Number of running sequences by caller.
        """
        return min(
            callers,
            key=lambda caller: (
                caller in running,
                self._tokens[caller] + self._planned[caller],
                -self._arrivals[caller],
            ),
        )
