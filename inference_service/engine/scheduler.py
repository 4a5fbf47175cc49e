"""Which tokens of which sequences are computed in the next step.

First come, first served. A step takes decodes first, then chunks of prompts that are under way, then new sequences.
A sequence is admitted when there are pages for all its present tokens, so only the growth of answers can run out of
pages; then the newest running sequence is preempted: it loses its pages, keeps its answer so far, and is computed
again from the front. The oldest can always go on, because `add` refuses what would not fit alone; so everything ends.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from inference_service.engine.blocks import BlockManager
from inference_service.engine.encoder_cache import EncoderCache
from inference_service.engine.sequence import Sequence, SequenceId
from inference_service.engine_protocol.messages import FinishReason, ImageSpan
from inference_service.errors import (
    ContextLengthError,
    ImageTooLargeError,
    RequestIdInUseError,
)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens [start, end) of a sequence, to be computed in one step.

    Attributes:
        sequence: Whose tokens.
        start: Equals the sequence's computed tokens.
        end: Behind the last token.
        samples: The chunk ends with the sequence's newest token, so the next one is sampled.
    """

    sequence: Sequence
    start: int
    end: int
    samples: bool


@dataclass(slots=True)
class Plan:
    """One step.

    Attributes:
        tokens_left: Rest of the step's token budget.
        encoder_tokens_left: Rest of the step's budget of image tokens.
        chunks: What to compute; the sequence scheduled last is the last.
        images: What to encode before, each key once, and the sequence that brings the pixels.
    """

    tokens_left: int
    encoder_tokens_left: int
    chunks: list[Chunk] = field(default_factory=list)
    images: list[tuple[Sequence, ImageSpan]] = field(default_factory=list)


@dataclass(slots=True)
class Counters:
    """Sums since the start. Prefixes are counted in prompt tokens, the encoder in images."""

    prefix_queries: int = 0
    prefix_hits: int = 0
    encoder_queries: int = 0
    encoder_hits: int = 0
    preemptions: int = 0


class Scheduler:
    """Continuous batching with chunked prefill and preemption by recomputation."""

    def __init__(
        self,
        blocks: BlockManager,
        encoder_cache: EncoderCache[Any],
        *,
        max_model_len: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
    ) -> None:
        if max_model_len > blocks.num_pages * blocks.page_size:
            raise ValueError("the KV cache is smaller than the context window")
        self.max_model_len = max_model_len
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of arrival, and all older than the waiting
        self.counters = Counters()
        self._blocks = blocks
        self._encoder_cache = encoder_cache
        self._sequences: dict[SequenceId, Sequence] = {}

    @property
    def has_work(self) -> bool:
        """Whether any sequence has not ended."""
        return bool(self._sequences)

    def of_request(self, request_id: str) -> list[Sequence]:
        """The sequences of a request that have not ended, in order of their choices."""
        return [s for s in self._sequences.values() if s.request.request_id == request_id]

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises:
            RequestIdInUseError: A sequence with this id has not ended.
            ContextLengthError: The prompt leaves no room for an answer.
            ImageTooLargeError: An image can never be in the encoder cache.
        """
        if sequence.sequence_id in self._sequences:
            raise RequestIdInUseError("A request with this id is in flight.")
        if len(sequence) >= self.max_model_len:
            raise ContextLengthError(
                f"The prompt has {len(sequence)} tokens, but the context window is"
                f" {self.max_model_len} tokens, prompt and answer together.",
                metadata={
                    "prompt_tokens": str(len(sequence)),
                    "max_context_tokens": str(self.max_model_len),
                },
            )
        for image in sequence.request.images:
            if image.num_tokens > self._encoder_cache.capacity_tokens:
                raise ImageTooLargeError(
                    f"An image takes {image.num_tokens} tokens, but the encoder takes"
                    f" {self._encoder_cache.capacity_tokens} at most.",
                    metadata={
                        "tokens": str(image.num_tokens),
                        "max_tokens": str(self._encoder_cache.capacity_tokens),
                    },
                )
        self._sequences[sequence.sequence_id] = sequence
        self.waiting.append(sequence)

    def schedule(self) -> Plan:
        """Decide the next step; the plan is empty if nothing can be done."""
        plan = Plan(self.max_num_batched_tokens, self.max_num_batched_tokens)
        preemptions = self.counters.preemptions
        self._schedule_decodes(plan)
        self._schedule_prefills(plan)
        if self.counters.preemptions == preemptions:  # else the newcomer is the next victim
            self._admit(plan)
        return plan

    def commit(self, chunk: Chunk, token_id: int | None = None) -> FinishReason | None:
        """A chunk of the last plan is computed; take its next token, if it samples one.

        A chunk that is not committed is planned again.

        Returns:
            Why the sequence has ended with this token, or None.
        """
        sequence = chunk.sequence
        sequence.num_computed_tokens = chunk.end
        self._blocks.publish(sequence)
        for image in sequence.images_between(chunk.start, chunk.end):
            if image.start + image.num_tokens <= chunk.end:
                self._unpin(sequence, image)
        if token_id is None:
            return None
        sequence.token_ids.append(token_id)
        reason = sequence.reason_to_finish(self.max_model_len)
        if reason is not None:
            self.finish(sequence, reason)
        return reason

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence, wherever it is; everything it holds is free at once."""
        del self._sequences[sequence.sequence_id]
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self._release(sequence)
        sequence.finish_reason = reason

    def _schedule_decodes(self, plan: Plan) -> None:
        for sequence in [sequence for sequence in self.running if sequence.is_decoding]:
            if not plan.tokens_left:
                return
            if not sequence.pages:  # preempted by an older one just now
                return
            while not self._blocks.grow(sequence):
                if self.running[-1] is sequence:
                    return  # waits for a page that an older one gives back
                self._preempt(self.running[-1])
            self._add_chunk(plan, sequence, len(sequence))

    def _schedule_prefills(self, plan: Plan) -> None:
        for sequence in self.running:
            if plan.tokens_left and not sequence.is_decoding:
                self._schedule_prefill(plan, sequence)

    def _admit(self, plan: Plan) -> None:
        while self.waiting and plan.tokens_left and len(self.running) < self.max_num_seqs:
            sequence = self.waiting[0]
            # Pages of the cache come without logits, so a prompt's own log probabilities need a computation.
            if not self._blocks.admit(sequence, use_cache=not sequence.wants_prompt_logprobs):
                return
            self.running.append(self.waiting.popleft())
            if sequence.num_cached_tokens is None:
                sequence.num_cached_tokens = sequence.num_computed_tokens
                self.counters.prefix_queries += sequence.num_prompt_tokens
                self.counters.prefix_hits += sequence.num_cached_tokens
            self._schedule_prefill(plan, sequence)

    def _schedule_prefill(self, plan: Plan, sequence: Sequence) -> None:
        """As many of the sequence's tokens as budget and images allow, perhaps none."""
        start = sequence.num_computed_tokens
        end = min(len(sequence), start + plan.tokens_left)
        for image in sequence.images_between(start, end):
            if not self._secure(plan, sequence, image):
                end = max(start, image.start)
                break
        if end > start:
            self._add_chunk(plan, sequence, end)

    def _secure(self, plan: Plan, sequence: Sequence, image: ImageSpan) -> bool:
        """Pin an image in the encoder cache, encoding it in this step if it is not there."""
        hit = image.key in self._encoder_cache
        if not hit:
            untouched = plan.encoder_tokens_left == self.max_num_batched_tokens
            # One image may be larger than the budget of a step, or it would never be encoded.
            if image.num_tokens > plan.encoder_tokens_left and not untouched:
                return False
            if not self._encoder_cache.reserve(image.key, image.num_tokens):
                return False
            plan.encoder_tokens_left -= image.num_tokens
            plan.images.append((sequence, image))
        if self._encoder_cache.pin(image.key, (sequence.sequence_id, image.start)):
            self.counters.encoder_queries += 1
            self.counters.encoder_hits += hit
        return True

    def _add_chunk(self, plan: Plan, sequence: Sequence, end: int) -> None:
        start = sequence.num_computed_tokens
        plan.tokens_left -= end - start
        plan.chunks.append(Chunk(sequence, start, end, samples=end == len(sequence)))

    def _preempt(self, sequence: Sequence) -> None:
        self.counters.preemptions += 1
        self.running.remove(sequence)
        self.waiting.appendleft(sequence)
        self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        self._blocks.release(sequence)
        for image in sequence.request.images:
            self._unpin(sequence, image)

    def _unpin(self, sequence: Sequence, image: ImageSpan) -> None:
        self._encoder_cache.unpin(image.key, (sequence.sequence_id, image.start))
