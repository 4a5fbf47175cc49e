"""Bounds the work of a step, so that prompts and images of some callers do not stall the others.

A step of `n` answers alone takes `d(n)` seconds. Beside prompts and images it may take `slowdown * d(n)`. Without
answers it may take `MAX_STEP_S`, as whoever comes meanwhile waits for its end. What fits is learned: the number of
tokens of prompts shrinks when a step has taken longer, and grows when it has taken less. Images are encoded in pieces
until their time is over. Where both are waiting, they share.
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
        self._tokens = float(min(max_tokens, _FIRST_TOKENS))
        self._tokens_without_answers = float(min(max_tokens, _FIRST_TOKENS_WITHOUT_ANSWERS))
        # The newest durations of answers alone, by the bit length of their number.
        self._alone: defaultdict[int, deque[float]] = defaultdict(partial(deque, maxlen=_SAMPLES))
        self._since_alone = 0

    def tokens_beside(self, num_decodes: int, *, encoding: bool) -> int:
        """The prompt tokens that this step may compute.

        Args:
            num_decodes: Number of answers in progress that get a token.
            encoding: Whether images are being encoded, too.
        """
        if not num_decodes:
            tokens = self._tokens_without_answers
            return int(tokens / 2 if encoding else tokens) or 1
        if self._measures_alone(num_decodes):
            return 0
        return max(MIN_TOKENS, int(self._tokens / 2 if encoding else self._tokens))

    def encode_s_beside(self, num_decodes: int, num_prefill_tokens: int) -> float:
        """How long this step may encode images, in seconds; 0 = not at all.

        Args:
            num_decodes: Number of answers in progress that get a token.
            num_prefill_tokens: Prompt tokens in the step.
        """
        spare_s = MAX_STEP_S
        if num_decodes:
            if self._measures_alone(num_decodes):
                return 0.0
            alone_s = median(self._alone[num_decodes.bit_length()])
            spare_s = min(spare_s, (self._slowdown - 1) * alone_s)
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
        alone_s = median(known)
        change = (self._slowdown - 1) * alone_s / max(step_s - alone_s, 1e-6)
        tokens = _adapted(self._tokens, num_prefill_tokens, change)
        self._tokens = min(max(tokens, float(MIN_TOKENS)), float(self._max_tokens))

    def _note_without_answers(self, num_prefill_tokens: int, step_s: float) -> None:
        change = MAX_STEP_S / max(step_s, 1e-6)
        tokens = _adapted(self._tokens_without_answers, num_prefill_tokens, change)
        tokens = max(tokens, float(MIN_TOKENS_WITHOUT_ANSWERS))
        self._tokens_without_answers = min(tokens, float(self._max_tokens))

    def _measures_alone(self, num_decodes: int) -> bool:
        known = self._alone[num_decodes.bit_length()]
        return len(known) < _SAMPLES or self._since_alone >= _ALONE_EVERY


def _adapted(tokens: float, computed: int, change: float) -> float:
    """The tokens that fit after a step that could have had `change` times as many; few show no room for more."""
    if change >= 1 and computed < tokens / 2:
        return tokens
    return tokens * min(max(change, 0.5), 1.25)
