"""Bounds the work of a step, so that prompts and images of some callers do not stall the others.

A step of `n` answers alone takes `d(n)` seconds. Beside prompts and images it may take `slowdown * d(n)`. Where nobody
else is present than the caller whose prompts they are, it may take `MAX_STEP_S`, if that is longer: whoever is alone
has more of an engine that computes prompts at once. Without answers it may take `MAX_STEP_S`, too, as whoever comes
meanwhile waits for its end. What fits is learned, from the tokens of prompts that a step has computed in what it took
longer. Images are encoded in pieces until their time is over. Where both are waiting, they share.
"""

from __future__ import annotations

from collections import defaultdict, deque
from functools import partial
from statistics import median
from typing import Final


_FIRST_TOKENS: Final = 64
_FIRST_TOKENS_WITHOUT_ANSWERS: Final = 512
MIN_TOKENS: Final = 16
"""Prompt tokens of a step beside answers, at least: prompts must get on, too."""

MAX_STEP_S: Final = 0.1
"""How long a step without answers may take."""
MIN_TOKENS_WITHOUT_ANSWERS: Final = 128
"""Fewer make a step hardly shorter, as it reads all weights; prompts as a whole would take longer."""

_ALONE_EVERY: Final = 16
"""So often answers are computed alone, to learn how long that takes now."""

_SAMPLES: Final = 3
"""Durations of answers alone whose median counts: one that was held up, or the first of a cold device, does not."""


class Pace:
    """How much a step may do beside answers in progress."""

    def __init__(self, max_tokens: int, slowdown: float) -> None:
        """Creates a pace that has learned nothing.

        Args:
            max_tokens: Token budget of a step.
            slowdown: How many times longer than answers alone a step may take.
        """
        self._max_tokens = max_tokens
        self._slowdown = slowdown
        self._tokens_per_s: float | None = None  # of prompts beside answers
        self._offered = 0
        self._tokens_without_answers = float(min(max_tokens, _FIRST_TOKENS_WITHOUT_ANSWERS))
        # The newest durations of answers alone, by the bit length of their number.
        self._alone: defaultdict[int, deque[float]] = defaultdict(partial(deque, maxlen=_SAMPLES))
        self._since_alone = 0

    def tokens_beside(self, num_decodes: int, *, encoding: bool, shared: bool = True) -> int:
        """The prompt tokens that this step may compute.

        Args:
            num_decodes: Number of answers in progress that get a token.
            encoding: Whether images are being encoded, too.
            shared: Whether there are several callers.
        """
        if not num_decodes:
            tokens = self._tokens_without_answers
            return int(tokens / 2 if encoding else tokens) or 1
        if self._measures_alone(num_decodes):
            return 0
        tokens = float(_FIRST_TOKENS)
        if self._tokens_per_s is not None:
            tokens = self._tokens_per_s * self._spare_s(num_decodes, shared)
        self._offered = int(min(max(tokens, MIN_TOKENS), self._max_tokens))
        return max(MIN_TOKENS, self._offered // 2) if encoding else self._offered

    def encode_s_beside(
        self, num_decodes: int, num_prefill_tokens: int, *, shared: bool = True
    ) -> float:
        """How long this step may encode images, in seconds; 0 = not at all.

        Args:
            num_decodes: Number of answers in progress that get a token.
            num_prefill_tokens: Prompt tokens in the step.
            shared: Whether there are several callers.
        """
        spare_s = MAX_STEP_S
        if num_decodes:
            if self._measures_alone(num_decodes):
                return 0.0
            spare_s = min(spare_s, self._spare_s(num_decodes, shared))
        return spare_s / 2 if num_prefill_tokens else spare_s

    def note(
        self, num_decodes: int, num_prefill_tokens: int, step_s: float, *, encoded: bool
    ) -> None:
        """Learns how long a step took, unless it encoded images: on a GPU their end is not known exactly.

        Args:
            num_decodes: Number of answers in progress that got a token.
            num_prefill_tokens: Prompt tokens in the step.
            step_s: How long it took.
            encoded: Whether it encoded images.
        """
        if not num_decodes:
            if not encoded:
                self._note_without_answers(num_prefill_tokens, step_s)
            return
        known = self._alone[num_decodes.bit_length()]
        if not num_prefill_tokens and not encoded:
            self._since_alone = 0
            known.append(step_s)
            return
        self._since_alone += 1
        if not known or encoded:
            return
        found = num_prefill_tokens / max(step_s - median(known), 1e-6)
        before = self._tokens_per_s
        if before is None:
            self._tokens_per_s = found
        elif found < before or num_prefill_tokens >= self._offered / 2:
            # Few tokens show no room for more.
            self._tokens_per_s = before * _damped(found / before)

    def _spare_s(self, num_decodes: int, shared: bool) -> float:
        """How much longer than answers alone this step may take."""
        alone_s = median(self._alone[num_decodes.bit_length()])
        bound_s = (self._slowdown - 1) * alone_s
        return bound_s if shared else max(bound_s, MAX_STEP_S - alone_s)

    def _note_without_answers(self, num_prefill_tokens: int, step_s: float) -> None:
        change, tokens = MAX_STEP_S / max(step_s, 1e-6), self._tokens_without_answers
        if change < 1 or num_prefill_tokens >= tokens / 2:
            tokens = max(tokens * _damped(change), float(MIN_TOKENS_WITHOUT_ANSWERS))
            self._tokens_without_answers = min(tokens, float(self._max_tokens))

    def _measures_alone(self, num_decodes: int) -> bool:
        known = self._alone[num_decodes.bit_length()]
        return len(known) < _SAMPLES or self._since_alone >= _ALONE_EVERY


def _damped(change: float) -> float:
    """A change of which one step that was held up, or seemed to take no time, changes little."""
    return min(max(change, 0.5), 1.25)
