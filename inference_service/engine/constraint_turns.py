"""Which constrained answers a step leaves out: the constraints of a caller take a share of it, however many they are.

Many answers that each take an honest time would make the steps of everybody several times as long together. What is
left out comes first in a later step, so that answers with expensive constraints become slower, and go on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from inference_service.engine.sequence import Sequence


ALL_S: Final = 0.1
"""CPU time for the constraints of a step, as long as a step takes that is filled with prompts."""
CALLER_S: Final = ALL_S / 4
"""CPU time for those of one caller beside others; 64 answers with common constraints take an eighth of it."""


def left_out(answers: Iterable[Sequence], everybody: Iterable[Sequence]) -> set[Sequence]:
    """The answers that are to wait for a later step; of each caller at least one constrained answer goes on.

    Args:
        answers: Those whose next token could be computed.
        everybody: All unfinished sequences.
    """
    by_caller: dict[str, list[Sequence]] = {}
    for answer in answers:
        if answer.is_masked:
            by_caller.setdefault(answer.caller, []).append(answer)
    if not by_caller:
        return set()
    is_alone = len(by_caller) == 1 and all(one.caller in by_caller for one in everybody)
    share_s = ALL_S if is_alone else min(CALLER_S, ALL_S / len(by_caller))
    return {one for mine in by_caller.values() for one in _beyond(share_s, mine)}


def _beyond(share_s: float, answers: list[Sequence]) -> Iterable[Sequence]:
    """The answers of one caller beyond its share of a step; those come first that were left out most often."""
    waiting = {one: one.constraint for one in answers if one.constraint is not None}
    spent_s = 0.0
    for answer, state in sorted(waiting.items(), key=lambda item: -item[1].num_left_out):
        if spent_s and spent_s + state.cost_s > share_s:
            state.num_left_out += 1
            yield answer
        else:
            spent_s += state.cost_s
