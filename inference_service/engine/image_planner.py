"""Decides which images a step encodes, and keeps those in the encoder cache that running sequences need."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from inference_service.engine.counters import Counters
from inference_service.engine.encoder_cache import EncoderCache
from inference_service.engine.plan import Plan
from inference_service.engine.sequence import Sequence
from inference_service.engine_protocol.messages import ImageSpan


class ImagePlanner:
    """Plans the images that sequences need for their next tokens.

    Args:
        cache: Where the embeddings are.
        counters: Counts queries, hits and misses of the cache.
    """

    def __init__(self, cache: EncoderCache[Any], counters: Counters) -> None:
        self._cache = cache
        self._counters = counters

    def reach(self, plan: Plan, sequence: Sequence, end: int) -> int:
        """How far a sequence can be computed in this step: to `end`, or to an image that will not be encoded in time.

        The images before that are pinned, and planned for encoding if they are not cached.
        """
        start = sequence.num_computed_tokens
        for image in sequence.images_between(start, end):
            if not self._ensure(plan, sequence, image):
                return max(start, image.start)
        return end

    def release(self, sequence: Sequence, images: Iterable[ImageSpan]) -> None:
        """Unpins images of a sequence, which needs them no more."""
        for image in images:
            self._cache.unpin(image.key, (sequence.sequence_id, image.start))

    def _ensure(self, plan: Plan, sequence: Sequence, image: ImageSpan) -> bool:
        """Pin an image in the encoder cache, scheduling it for encoding if it is not cached."""
        hit = image.key in self._cache
        if hit and self._cache.get(image.key) is None:  # reserved
            planned = any(image.key == other.key for _, other in plan.images)
            if not planned:
                return False  # it is being encoded since an earlier step
        if not hit and not self._plan(plan, sequence, image):
            return False
        if self._cache.pin(image.key, (sequence.sequence_id, image.start)):
            self._counters.encoder_queries += 1
            self._counters.encoder_hits += hit
        return True

    def _plan(self, plan: Plan, sequence: Sequence, image: ImageSpan) -> bool:
        """Plan to encode an image, if there is room for it."""
        # A single image may exceed the budget of a step, otherwise it would never be encoded.
        if image.num_tokens > plan.encoder_tokens_left and plan.images:
            return False
        if self._encodes_enough(sequence.caller, image):
            return False
        reason = "evicted" if self._cache.was_evicted(image.key) else "new"
        if not self._cache.reserve(image.key, image.num_tokens, sequence.caller):
            return False
        self._counters.encoder_misses[reason] += 1
        plan.encoder_tokens_left -= image.num_tokens
        plan.images.append((sequence, image))
        return True

    def _encodes_enough(self, caller: str, image: ImageSpan) -> bool:
        """Whether images of a caller wait for the encoder that fill, with this one, more than half of its cache."""
        waiting = self._cache.unfilled_tokens(caller)
        return waiting > 0 and 2 * (waiting + image.num_tokens) > self._cache.capacity_tokens
