"""Decides which images a step encodes, and keeps those in the encoder cache that running sequences need.

Small images find room where a large one does not. So that they do not keep it out for ever, a sequence that cannot go
on without an image comes before all others once it has been refused for too long: then these pin no further images,
cached ones neither, as whoever sends the same small image again and again would keep its room. What they have pinned
already is passed within some steps, because a sequence that cannot go on keeps no pins of images ahead. A sequence
that is not looked at, as the steps are full of the prompts of others, holds back nobody: it does not come before others
then, and gives its room to who does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from inference_service.engine.counters import Counters
from inference_service.engine.encoder_cache import EncoderCache
from inference_service.engine.plan import Plan
from inference_service.engine.sequence import Sequence
from inference_service.engine_protocol.messages import ImageSpan


_PATIENCE_S: Final = 1.0
"""When a sequence has been refused its next image for so long, the sequences that are refused later give way."""
_IDLE_PLANS: Final = 16
"""A sequence that so many plans have not looked at is idle; a few may be full of a prompt of another caller."""


@dataclass(slots=True)
class _Refusal:
    """A sequence cannot go on, as its next image was refused.

    Attributes:
        since_s: When it was refused first.
        for_all: Whether others are in its way, not only images of its own caller.
    """

    since_s: float
    for_all: bool


class ImagePlanner:
    """Plans the images that sequences need for their next tokens.

    Args:
        cache: Where the embeddings are.
        counters: Counts queries, hits and misses of the cache.
        clock: Tells the time in seconds.
    """

    def __init__(
        self, cache: EncoderCache[Any], counters: Counters, clock: Callable[[], float]
    ) -> None:
        self._cache = cache
        self._counters = counters
        self._clock = clock
        self._refused: dict[Sequence, _Refusal] = {}  # the first one first
        self._looked_at: dict[Sequence, int] = {}  # if it has images: the number of the last plan
        self._newest: Plan | None = None
        self._num_plans = 0  # those that look at any prompt

    def reach(self, plan: Plan, sequence: Sequence, end: int) -> int:
        """How far a sequence can be computed in this step: to `end`, or to an image that will not be encoded in time.

        The images before that are pinned, and planned for encoding if they are not cached.
        """
        if plan is not self._newest:
            self._newest = plan
            self._num_plans += 1
        if sequence.request.images:
            self._looked_at[sequence] = self._num_plans
        start = sequence.num_computed_tokens
        for image in sequence.images_between(start, end):
            if not self._ensure(plan, sequence, image):
                return max(start, image.start)
        return end

    def release(self, sequence: Sequence, images: Iterable[ImageSpan]) -> None:
        """Unpins images of a sequence, which needs them no more."""
        for image in images:
            self._cache.unpin(image.key, (sequence.sequence_id, image.start))

    def leave(self, sequence: Sequence) -> None:
        """Forgets a sequence that leaves the batch."""
        self._refused.pop(sequence, None)
        self._looked_at.pop(sequence, None)
        self.release(sequence, sequence.request.images)

    def _ensure(self, plan: Plan, sequence: Sequence, image: ImageSpan) -> bool:
        """Pin an image in the encoder cache, scheduling it for encoding if it is not cached."""
        owner = (sequence.sequence_id, image.start)
        hit = image.key in self._cache
        if hit and self._cache.get(image.key) is None:  # reserved
            planned = any(image.key == other.key for _, other in plan.images)
            if not planned:
                return False  # it is being encoded since an earlier step
        if self._cache.is_pinned(image.key, owner):
            return True
        if (first := self._comes_before(sequence)) is not None:
            return self._refuse(sequence, image, for_all=first.for_all)
        if not hit and not self._plan(plan, sequence, image):
            return False
        self._refused.pop(sequence, None)
        self._cache.pin(image.key, owner)
        self._counters.encoder_queries += 1
        self._counters.encoder_hits += hit
        return True

    def _plan(self, plan: Plan, sequence: Sequence, image: ImageSpan) -> bool:
        """Plan to encode an image, if there is room for it."""
        # A single image may exceed the budget of a step, otherwise it would never be encoded.
        if image.num_tokens > plan.encoder_tokens_left and plan.images:
            return self._refuse(sequence, image, for_all=True)
        if self._encodes_enough(sequence.caller, image):
            return self._refuse(sequence, image, for_all=False)
        reason = "evicted" if self._cache.was_evicted(image.key) else "new"
        if not self._cache.reserve(image.key, image.num_tokens, sequence.caller):
            refusal = self._refused.get(sequence)
            if refusal is not None and self._clock() - refusal.since_s >= _PATIENCE_S:
                self._unpin_idle()
            return self._refuse(sequence, image, for_all=True)
        self._counters.encoder_misses[reason] += 1
        plan.encoder_tokens_left -= image.num_tokens
        plan.images.append((sequence, image))
        return True

    def _refuse(self, sequence: Sequence, image: ImageSpan, *, for_all: bool) -> bool:
        """Notes since when a sequence cannot go on, if it cannot; returns False."""
        start = sequence.num_computed_tokens
        if image.start <= start:
            refusal = self._refused.setdefault(sequence, _Refusal(self._clock(), for_all))
            refusal.for_all = for_all
            # Pins of images behind this one, left from a plan that failed, would be in the way of all for ever.
            self.release(sequence, sequence.images_between(start, len(sequence)))
        return False

    def _comes_before(self, sequence: Sequence) -> _Refusal | None:
        """The first one for which a sequence gives way: refused earlier and for too long, and not idle."""
        for other, refusal in self._refused.items():
            if other is sequence or self._clock() - refusal.since_s < _PATIENCE_S:
                return None
            if not self._is_idle(other) and (refusal.for_all or other.caller == sequence.caller):
                return refusal
        return None

    def _is_idle(self, sequence: Sequence) -> bool:
        """Whether the last plans have not looked at a sequence with images."""
        return self._num_plans - self._looked_at[sequence] >= _IDLE_PLANS

    def _unpin_idle(self) -> None:
        """Unpins the embeddings of idle sequences, which may have to be encoded again."""
        for sequence in filter(self._is_idle, self._looked_at):
            ahead = sequence.images_between(sequence.num_computed_tokens, len(sequence))
            # What is being encoded would be given up.
            encoded = (image for image in ahead if self._cache.get(image.key) is not None)
            self.release(sequence, encoded)

    def _encodes_enough(self, caller: str, image: ImageSpan) -> bool:
        """Whether images of a caller wait for the encoder that fill, with this one, more than half of its cache."""
        waiting = self._cache.unfilled_tokens(caller)
        return waiting > 0 and 2 * (waiting + image.num_tokens) > self._cache.capacity_tokens
