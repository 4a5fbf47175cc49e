"""Where an answer is in its constraint, and what its constraint costs: those that would hold up all others end.

A grammar may be ambiguous, so that each token costs more than the one before it, without a limit that a trial of its
beginning could show. The rows of a step share the time that constraints may take; what a row takes beyond its share is
its debt. While the debts are too high together, the answer with the highest one ends. Which rows a step has, see
`constraint_turns`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
import time
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from inference_service.grammar.matcher import GrammarError, raise_error


if TYPE_CHECKING:
    from llguidance import LLMatcher

STEP_S: Final = 0.025
"""Time for the constraints of a step that have few rows; a mask of an honest one takes 0.05 ms, in the mean."""
ROW_S: Final = 0.01
"""Time for each row, however many there are: texts of limited length take up to 2.4 ms with 150,000 tokens on a
processor of 2.8 GHz, and more on others; ambiguous grammars soon take ten times as long."""
_MANY_SHARES: Final = 3.0
"""No row may take so many shares in each step, however much of theirs the others leave."""
MAX_DEBT_S: Final = 0.5
"""Debts of all rows together."""
_NEW_S: Final = 0.001
"""What a row is expected to take that is new."""
_FADES: Final = 0.9
"""What is left in each step of what a row took once: it may take it again."""


class ConstraintState:
    """Where one answer is in its constraint.

    Attributes:
        matcher: The matcher; it has taken all tokens of the answer to which the constraint applies.
        active: Whether the next token is one of the constraint's.
        spent_s: CPU time of its thread since `over_budget` has looked.
        debt_s: What it has taken of the others' time, and not given back since.
        cost_s: CPU time that its next step is expected to take, more than 0.
        num_left_out: How many steps have left it out since its last one.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        after: int | None,
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """Begins an answer.

        Args:
            matcher: A matcher at the beginning.
            after: The constraint applies after this token; None = from the beginning.
            clock: CPU time of the calling thread in seconds: a busy machine must not end answers.
        """
        self.matcher = matcher
        self.active = after is None
        self.spent_s = 0.0
        self.debt_s = 0.0
        self.cost_s = _NEW_S
        self.num_left_out = 0
        self._after = after
        self._clock = clock

    def fill(self, words: npt.NDArray[np.int32]) -> None:
        """Computes the mask of the next token, in any thread.

        Args:
            words: [ceil(V / 32)] int32, written: bit i of word w is token 32 * w + i. Only end tokens are permitted if
                the matcher has failed, which `take` tells.
        """
        begin_s = self._clock()
        self.matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        self.spent_s += self._clock() - begin_s

    def take(self, token_id: int) -> None:
        """Takes the next token of the answer.

        Raises:
            GrammarError: The last mask could not be computed, or did not permit the token.
        """
        if not self.active:
            self.active = token_id == self._after
            return
        # Its mask would permit only end tokens, as if the answer were complete.
        raise_error(self.matcher)
        begin_s = self._clock()
        taken = self.matcher.consume_token(token_id)
        self.spent_s += self._clock() - begin_s
        if not taken:
            raise_error(self.matcher)
            raise GrammarError("the token is not permitted")


def over_budget(
    states: Iterable[ConstraintState], left_out: Iterable[ConstraintState] = ()
) -> list[ConstraintState]:
    """Charges the rows of a step for their time; those that must end, the most expensive first.

    Args:
        states: The rows.
        left_out: Those that run beside them, but not in this step; their debts count.
    """
    rows = [state for state in states if state.active]
    if not rows:
        return []
    share_s = max(ROW_S, STEP_S / len(rows))
    is_over = sum(state.spent_s for state in rows) > share_s * len(rows)
    for state in rows:
        # What one row takes is no debt while the others leave it the time, within bounds.
        is_charged = is_over or state.spent_s > _MANY_SHARES * share_s
        charged_s = state.spent_s if is_charged else 0.0
        state.debt_s = max(0.0, state.debt_s + charged_s - share_s)
        state.cost_s = max(state.spent_s, _FADES * state.cost_s)
        state.num_left_out = 0
        state.spent_s = 0.0
    rows += left_out
    rows.sort(key=lambda state: state.debt_s, reverse=True)
    excess_s = sum(state.debt_s for state in rows) - MAX_DEBT_S
    ended: list[ConstraintState] = []
    for state in rows:
        if excess_s <= 0.0:
            break
        ended.append(state)
        excess_s -= state.debt_s
    return ended
