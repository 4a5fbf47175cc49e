"""What the transformers process accepts, and when: sequences reserve room in the cache, and more as they grow."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from inference_service.engine.sequence import Sequence
from inference_service.engine.validation import check_lists, named_ids
from inference_service.engine_protocol.messages import EngineRequest
from inference_service.errors import (
    ContextLengthError,
    InvalidArgumentError,
    UnsupportedParameterError,
)


_PROMPT_LOGITS_BYTES: Final = 2**30
"""Maximum size of the logits of a whole prompt, which the library's models compute at once, as float32."""
_MAX_GROWTH: Final = 1024
"""Tokens of an answer for which room is reserved at once, at most: most answers end long before they may."""


class Admission:
    """Counts tokens and sequences.

    A sequence that would not fit waits. An answer has room for some tokens, and asks for more when these are full; half
    of the cache is enough for one such share for each sequence.

    Args:
        max_tokens: Tokens of all sequences together, at least `max_length` and `state_tokens`.
        max_seqs: Maximum sequences.
        max_length: Maximum tokens of one sequence.
        vocab_size: Width of the logits.
        state_tokens: Tokens for which each sequence needs room beside its own.
    """

    def __init__(
        self,
        *,
        max_tokens: int,
        max_seqs: int,
        max_length: int,
        vocab_size: int,
        state_tokens: int = 0,
    ) -> None:
        self.used_tokens = 0
        self._max_tokens = max_tokens
        self._state_tokens = state_tokens
        share = (max_tokens - max_seqs * state_tokens) // (2 * max_seqs)
        self._growth = max(1, min(_MAX_GROWTH, share))
        self._max_seqs = max_seqs
        self._max_length = max_length
        self._vocab_size = vocab_size
        self._taken: dict[Sequence, int] = {}

    def check(self, request: EngineRequest) -> None:
        """Refuses a request that could never be computed.

        Raises:
            InvalidArgumentError: It has no choices or no prompt, or a token id outside the vocabulary.
            ContextLengthError: The prompt leaves no room for an answer.
            UnsupportedParameterError: Its prompt's log probabilities would need too much memory.
        """
        if request.num_choices < 1 or not request.prompt_token_ids:
            raise InvalidArgumentError("A request has at least one choice and one token.")
        probes = [i for p in request.probes for i in (*p.token_ids, *p.candidate_ids)]
        used = (*request.prompt_token_ids, *named_ids(request.sampling), *probes)
        if min(used) < 0 or max(used) >= self._vocab_size:
            raise InvalidArgumentError(f"Token ids must be 0 to {self._vocab_size - 1}.")
        check_lists(request.sampling, self._vocab_size)
        longest = max((len(probe.token_ids) for probe in request.probes), default=0)
        length = len(request.prompt_token_ids) + longest
        if length >= self._max_length:
            raise ContextLengthError(
                f"This model's maximum context length is {self._max_length} tokens (--max-model-len). However, the"
                f" prompt has {length} tokens, which leaves no room for an answer.",
                metadata={
                    "prompt_tokens": str(length),
                    "max_context_tokens": str(self._max_length),
                },
            )
        logits_bytes = 4 * length * self._vocab_size
        if request.sampling.prompt_logprobs is not None and logits_bytes > _PROMPT_LOGITS_BYTES:
            most = _PROMPT_LOGITS_BYTES // (4 * self._vocab_size)
            raise UnsupportedParameterError(
                f"prompt_logprobs of {length} tokens need more memory than --backend transformers spends on them;"
                f" this model allows prompts of up to {most} tokens with them.",
            )

    def take(self, sequence: Sequence) -> bool:
        """Reserves room for a sequence, if there is some now."""
        fits = self.fits(sequence)
        if fits:
            self._taken[sequence] = self._wanted(sequence)
            self.used_tokens += self._taken[sequence]
        return fits

    def fits(self, sequence: Sequence, *, without: Collection[Sequence] = ()) -> bool:
        """Whether there is room for a sequence, or would be without some that have room now."""
        used = self.used_tokens - sum(self._taken[one] for one in without)
        num_seqs = len(self._taken) - len(without)
        return used + self._wanted(sequence) <= self._max_tokens and num_seqs < self._max_seqs

    def extend(self, sequence: Sequence) -> bool:
        """Reserves room for further tokens if what a sequence has is full; False = nothing is left.

        This never happens to a sequence that is alone.
        """
        taken = self._taken[sequence]
        needed = len(sequence) + self._state_tokens
        if taken >= needed:
            return True
        more = min(self._wanted(sequence) - taken, self._max_tokens - self.used_tokens)
        self._taken[sequence] += more
        self.used_tokens += more
        return taken + more >= needed

    def _wanted(self, sequence: Sequence) -> int:
        """Tokens for which a sequence has room if it gets its share."""
        answer = 0 if sequence.probe else sequence.sampling.max_tokens
        longest = min(sequence.num_prompt_tokens + answer, self._max_length)
        return min(len(sequence) + self._growth, longest) + self._state_tokens

    def give_back(self, sequence: Sequence) -> None:
        """Frees the room of a sequence."""
        self.used_tokens -= self._taken.pop(sequence)
