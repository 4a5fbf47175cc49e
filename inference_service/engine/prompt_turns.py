"""The prompts that a step may compute, caller by caller, with turns for the short ones of each."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from inference_service.engine.sequence import Sequence


@dataclass(slots=True)
class Prompts:
    """The prompts of one caller, in order of arrival.

    In every other step the shortest come first, and half of the budget is for new sequences: so a short prompt does not
    wait for all long ones, and a long one is not put off for ever.

    Attributes:
        running: Those in progress.
        waiting: New sequences.
        kept: Tokens of the step's budget that those in progress leave to the new ones.
    """

    running: deque[Sequence] = field(default_factory=deque)
    waiting: deque[Sequence] = field(default_factory=deque)
    kept: int = 0

    @property
    def num_left(self) -> int:
        """Tokens that those in progress have left."""
        return sum(len(one) - one.num_computed_tokens for one in self.running)

    def shortest_first(self, budget: int, *, admits: bool) -> None:
        """Changes the order in progress, and leaves new ones what they can use, if any can be admitted."""
        shortest = sorted(self.running, key=lambda one: len(one) - one.num_computed_tokens)
        self.running = deque(shortest)
        self.kept = min(budget // 2, sum(map(len, self.waiting))) if admits else 0


def by_caller(running: Iterable[Sequence], waiting: Iterable[Sequence]) -> dict[str, Prompts]:
    """The prompts of each caller.

    Args:
        running: The sequences in the batch; answers in progress among them are left out.
        waiting: Those that may be admitted.
    """
    prompts: defaultdict[str, Prompts] = defaultdict(Prompts)
    for sequence in running:
        if not sequence.is_decoding:
            prompts[sequence.caller].running.append(sequence)
    for sequence in waiting:
        prompts[sequence.caller].waiting.append(sequence)
    return prompts
