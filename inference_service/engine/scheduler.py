"""Schedules the next step: which tokens of which sequences are computed.

A step takes decodes first, then prompts: callers by what they have had, see `shares`; of each caller first come, first
served, with turns for short prompts. A sequence is admitted when there are pages for all its current tokens, so only
growing answers can run out of pages. Then the newest running sequence is preempted: it loses its pages, keeps its
answer so far, and is recomputed from the start. The oldest sequence can always continue, because `add` refuses
sequences that would not fit alone; so every sequence ends. A caller of whom nothing runs need not wait for the answers
of others either: if there is no room, the newest sequence of the caller with the most is preempted.

The next step may be planned while one step is in flight. What is launched counts as computed, because the device works
in order: so pages and slots that are freed meanwhile can be given away at once, as whoever writes to them is queued
behind the step that still uses them. What is shared with other sequences or told to anybody is known: pages are
published, and sequences end, when a step is committed. Results of sequences that have ended meanwhile are dropped. A
sequence that was preempted meanwhile takes its token, and nothing else, as its pages are gone.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from heapq import heappop, heappush
import time
from typing import Any, Final

from inference_service.engine.blocks import BlockManager
from inference_service.engine.encoder_cache import EncoderCache
from inference_service.engine.pace import Pace
from inference_service.engine.sequence import Sequence, SequenceId
from inference_service.engine.shares import Shares
from inference_service.engine_protocol.messages import FinishReason, ImageSpan
from inference_service.errors import (
    ContextLengthError,
    ImageTooLargeError,
    RequestIdInUseError,
)
from inference_service.measures import ChoiceTimings


_PATIENCE_S: Final = 5.0
"""When the oldest sequence of a caller of whom none runs has waited longer, nobody is admitted before it."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens [start, end) of a sequence, to be computed in one step.

    Attributes:
        sequence: The sequence.
        start: The number of computed tokens of the sequence.
        end: Exclusive.
        samples: The chunk ends with the sequence's newest token, so the next one is sampled, or judged for a probe.
        epoch: The epoch of the sequence.
    """

    sequence: Sequence
    start: int
    end: int
    samples: bool
    epoch: int = 0

    @property
    def extends(self) -> bool:
        """Whether the sequence gets another token."""
        return self.samples and self.sequence.probe is None


@dataclass(slots=True)
class Plan:
    """The plan of one step.

    Attributes:
        tokens_left: Remaining token budget of the step.
        encoder_tokens_left: Remaining budget of image tokens to encode.
        chunks: The chunks to compute; the newest sequence is last.
        images: The images to encode first, each key once, with a sequence that has the pixels.
        num_decodes: How many chunks, the first ones, are the next tokens of answers in progress.
        shared: There are several callers.
        waits: Nothing is planned, as results are in flight for which somebody waits, and no answer goes on meanwhile:
            nothing would bound the step, so they are to be collected first.
    """

    tokens_left: int
    encoder_tokens_left: int
    chunks: list[Chunk] = field(default_factory=list)
    images: list[tuple[Sequence, ImageSpan]] = field(default_factory=list)
    num_decodes: int = 0
    shared: bool = True
    waits: bool = False


@dataclass(slots=True)
class _Prompts:
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

    def shortest_first(self, budget: int, *, admits: bool) -> None:
        """Changes the order in progress, and leaves new ones what they can use, if any can be admitted."""
        shortest = sorted(self.running, key=lambda one: len(one) - one.num_computed_tokens)
        self.running = deque(shortest)
        self.kept = min(budget // 2, sum(map(len, self.waiting))) if admits else 0


@dataclass(slots=True)
class Counters:
    """Sums since the start. Prefix counters count prompt tokens, encoder counters count images, misses by reason."""

    prefix_queries: int = 0
    prefix_hits: int = 0
    prefix_misses: Counter[str] = field(default_factory=Counter)
    encoder_queries: int = 0
    encoder_hits: int = 0
    encoder_misses: Counter[str] = field(default_factory=Counter)
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
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_model_len > blocks.num_pages * blocks.page_size:
            raise ValueError("the KV cache is smaller than the context window")
        self.max_model_len = max_model_len
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting: deque[Sequence] = deque()
        # In order of admission. Of each caller in order of arrival, and all older than its waiting ones.
        self.running: list[Sequence] = []
        self.counters = Counters()
        self._pace = pace
        self._shortest_first = False
        self._shares = Shares()
        self._clock = clock
        self._blocks = blocks
        self._encoder_cache = encoder_cache
        self._sequences: dict[SequenceId, Sequence] = {}
        self._free_slots = list(range(max_num_seqs))  # a heap: the slots in use stay close together

    @property
    def has_work(self) -> bool:
        """Whether any sequence is unfinished."""
        return bool(self._sequences)

    def of_request(self, request_id: str) -> list[Sequence]:
        """The unfinished sequences of a request, in order of their choices."""
        return [s for s in self._sequences.values() if s.request.request_id == request_id]

    def add(self, sequences: Seq[Sequence]) -> None:
        """Queue the sequences of one request; if it is refused, none of them.

        Raises:
            RequestIdInUseError: A sequence of a request with this id is unfinished.
            ContextLengthError: The prompt leaves no room for an answer.
            ImageTooLargeError: An image exceeds the encoder cache.
        """
        self.check(sequences)
        self._sequences.update({sequence.sequence_id: sequence for sequence in sequences})
        self.waiting.extend(sequences)
        now_s = self._clock()
        for sequence in sequences:
            sequence.arrived_s = now_s
            self._shares.enter(sequence.caller)

    def schedule(self, *, encoding: bool = False) -> Plan:
        """Plan the next step; the plan is empty if there is nothing to compute.

        Args:
            encoding: Images of earlier plans are being encoded.
        """
        plan = Plan(self.max_num_batched_tokens, self.max_num_batched_tokens)
        self._make_room()
        preemptions = self.counters.preemptions
        self._schedule_decodes(plan)
        plan.num_decodes = len(plan.chunks)
        plan.shared = self._shares.num_callers > 1
        plan.waits = not plan.chunks and any(one.awaits_result for one in self.running)
        if plan.waits:
            return plan
        if self._pace is not None:
            self._shortest_first = not self._shortest_first
            beside = self._pace.tokens_beside(
                plan.num_decodes, encoding=encoding, shared=plan.shared
            )
            plan.tokens_left = min(plan.tokens_left, beside)
        # After a preemption, a new sequence would be preempted next.
        self._schedule_prompts(plan, admitting=self.counters.preemptions == preemptions)
        return plan

    def launched(self, chunks: Iterable[Chunk]) -> None:
        """Count chunks of the last plan as computed, because their work is queued on the device.

        A chunk that is not launched is planned again.
        """
        for chunk in chunks:
            chunk.sequence.num_computed_tokens = chunk.end
            chunk.sequence.num_pending += chunk.extends

    def revert(self, chunks: Seq[Chunk]) -> None:
        """Undo `launched` for the chunks of the newest step, whose results are lost; they are planned again."""
        for chunk in chunks:
            chunk.sequence.num_pending -= chunk.extends
            if chunk.epoch == chunk.sequence.epoch:
                chunk.sequence.num_computed_tokens = chunk.start

    def commit(self, chunk: Chunk, token_id: int | None = None) -> FinishReason | None:
        """Take the result of a chunk of the oldest step in flight: its next token, if it samples one.

        A probe ends with its last chunk. The sequence has not ended yet.

        Returns:
            The finish reason if the sequence ends with this token, else None.
        """
        sequence = chunk.sequence
        if chunk.epoch == sequence.epoch:
            self._blocks.publish(sequence, chunk.end)
            for image in sequence.images_between(chunk.start, chunk.end):
                if image.start + image.num_tokens <= chunk.end:
                    self._unpin(sequence, image)
        reason: FinishReason | None
        if chunk.samples and sequence.probe is not None:
            reason = FinishReason.LENGTH
        elif token_id is None:
            return None
        else:
            sequence.num_pending -= 1
            sequence.token_ids.append(token_id)
            reason = sequence.reason_to_finish(self.max_model_len)
        if reason is not None:
            self.finish(sequence, reason)
        return reason

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a running or waiting sequence and free its pages and images."""
        del self._sequences[sequence.sequence_id]
        if sequence in self.running:
            self._leave(sequence)
        else:
            self.waiting.remove(sequence)
        self._shares.leave(sequence.caller)
        sequence.finish_reason = reason

    def timings(self, sequence: Sequence) -> ChoiceTimings:
        """How long a sequence waited and was computed, if its first token was read now."""
        return ChoiceTimings(
            queue_s=sequence.admitted_s - sequence.arrived_s,
            prefill_s=self._clock() - sequence.admitted_s,
            encode_s=sum(seconds() for seconds in sequence.encodings),
        )

    def check(self, sequences: Seq[Sequence]) -> None:
        """Refuse a request that could never be scheduled, or that cannot be told from another one; raises as `add`."""
        request = sequences[0].request
        if self.of_request(request.request_id):
            raise RequestIdInUseError(
                f"request_id {request.request_id!r} is used by a request in flight; choose another one."
            )
        num_tokens = max(sequence.num_prompt_tokens for sequence in sequences)
        max_tokens = self.max_model_len
        if num_tokens >= max_tokens:
            raise ContextLengthError(
                f"This model's maximum context length is {max_tokens} tokens (--max-model-len). However, the prompt has"
                f" {num_tokens} tokens, which leaves no room for an answer.",
                metadata={"prompt_tokens": str(num_tokens), "max_context_tokens": str(max_tokens)},
            )
        capacity = self._encoder_cache.capacity_tokens
        for image in request.images:
            if image.num_tokens > capacity:
                raise ImageTooLargeError(
                    f"An image or video has {image.num_tokens} tokens, but at most {capacity} are allowed"
                    " (--encoder-cache-tokens).",
                    metadata={"tokens": str(image.num_tokens), "max_tokens": str(capacity)},
                )

    def _schedule_decodes(self, plan: Plan) -> None:
        for sequence in [sequence for sequence in self.running if sequence.is_decoding]:
            if not sequence.goes_on(self.max_model_len):
                continue
            if not plan.tokens_left:
                return
            if not sequence.pages:  # just preempted by an older one
                return
            while not self._blocks.grow(sequence):
                if self.running[-1] is sequence:
                    return  # waits until an older one frees a page
                self._preempt(self.running[-1])
            self._add_chunk(plan, sequence, sequence.num_tokens)

    def _make_room(self) -> None:
        """Preempt sequences for callers of whom none runs, one sequence for each; others keep one each."""
        running = self._running_by_caller()
        for sequence in self._first_waiting(running):
            if not self._may_fit(sequence):
                continue
            while not self._fits(sequence):
                greedy, count = max(running.items(), key=lambda item: item[1])
                if count < 2:
                    return
                self._preempt(next(s for s in reversed(self.running) if s.caller == greedy))
                running[greedy] -= 1

    def _schedule_prompts(self, plan: Plan, *, admitting: bool) -> None:
        """Continue prompts and admit new sequences; callers take turns, see `_Prompts` for those of one caller.

        When there is no room for a sequence, none is admitted that came later, but for callers of whom none runs.
        """
        if admitting and (late := self._overdue()) is not None:
            admitting = self._admit(late)
        running = self._running_by_caller()
        prompts = self._prompts_by_caller(plan, admitting=admitting)
        full = False
        while prompts and plan.tokens_left:
            caller = self._shares.first(prompts, running)
            mine = prompts[caller]
            if mine.running and plan.tokens_left > mine.kept:
                self._schedule_prefill(plan, mine.running.popleft(), plan.tokens_left - mine.kept)
            elif mine.waiting and not (full and caller in running) and self._admit(mine.waiting[0]):
                running[caller] += 1
                self._schedule_prefill(plan, mine.waiting.popleft(), plan.tokens_left)
            else:
                full |= bool(mine.waiting)
                del prompts[caller]

    def _prompts_by_caller(self, plan: Plan, *, admitting: bool) -> dict[str, _Prompts]:
        prompts: defaultdict[str, _Prompts] = defaultdict(_Prompts)
        for sequence in self.running:
            if not sequence.is_decoding:
                prompts[sequence.caller].running.append(sequence)
        for sequence in self.waiting if admitting else ():
            prompts[sequence.caller].waiting.append(sequence)
        for mine in prompts.values() if self._shortest_first else ():
            admits = bool(mine.waiting) and self._fits(mine.waiting[0])
            mine.shortest_first(plan.tokens_left, admits=admits)
        return prompts

    def _admit(self, sequence: Sequence) -> bool:
        """Admit a waiting sequence, if there is room."""
        # A token that is not known yet would be missing in the history of its new slot.
        if len(self.running) == self.max_num_seqs or sequence.num_pending:
            return False
        # Cached pages have no logits, so prompt log probabilities require computing the prompt.
        if not self._blocks.admit(sequence, use_cache=not sequence.wants_prompt_logprobs):
            return False
        self.waiting.remove(sequence)
        self.running.append(sequence)
        sequence.slot = heappop(self._free_slots)
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = sequence.num_computed_tokens
            sequence.admitted_s = self._clock()
            self.counters.prefix_queries += sequence.num_prompt_tokens
            self.counters.prefix_hits += sequence.num_cached_tokens
            self.counters.prefix_misses.update(sequence.prefix_misses)
        return True

    def _fits(self, sequence: Sequence) -> bool:
        return len(self.running) < self.max_num_seqs and self._blocks.fits(
            sequence, use_cache=not sequence.wants_prompt_logprobs
        )

    def _may_fit(self, sequence: Sequence) -> bool:
        """Whether there is room beside the oldest sequence of each caller, which are not preempted for others."""
        kept: dict[str, Sequence] = {}
        for one in self.running:
            kept.setdefault(one.caller, one)
        pages = {page for one in kept.values() for page in one.pages}
        needed = -(-len(sequence) // self._blocks.page_size)
        return len(kept) < self.max_num_seqs and needed <= self._blocks.num_pages - len(pages)

    def _overdue(self) -> Sequence | None:
        """The oldest waiting sequence of a caller of whom none runs, if it has waited too long.

        Each of many callers may have a small one admitted past it whenever one of theirs has ended.
        """
        running, now_s = self._running_by_caller(), self._clock()
        late = (
            one
            for one in self.waiting
            if one.caller not in running and now_s - one.arrived_s > _PATIENCE_S
        )
        return min(late, key=lambda one: one.arrived_s, default=None)

    def _running_by_caller(self) -> Counter[str]:
        return Counter(sequence.caller for sequence in self.running)

    def _first_waiting(self, running: Mapping[str, int]) -> list[Sequence]:
        """The first waiting sequence of each caller of whom none runs; nothing if none runs at all."""
        if not running:
            return []
        first: dict[str, Sequence] = {}
        for sequence in self.waiting:
            if sequence.caller not in running:
                first.setdefault(sequence.caller, sequence)
        return list(first.values())

    def _schedule_prefill(self, plan: Plan, sequence: Sequence, limit: int) -> None:
        """Schedule as many of the sequence's tokens as limit and images allow, possibly none."""
        start = sequence.num_computed_tokens
        end = min(len(sequence), start + limit)
        for image in sequence.images_between(start, end):
            if not self._ensure_image(plan, sequence, image):
                end = max(start, image.start)
                break
        if end > start:
            self._add_chunk(plan, sequence, end)

    def _ensure_image(self, plan: Plan, sequence: Sequence, image: ImageSpan) -> bool:
        """Pin an image in the encoder cache, scheduling it for encoding if it is not cached."""
        hit = image.key in self._encoder_cache
        if hit and self._encoder_cache.get(image.key) is None:  # reserved
            planned = any(image.key == other.key for _, other in plan.images)
            if not planned:
                return False  # it is being encoded since an earlier step
        if not hit:
            untouched = plan.encoder_tokens_left == self.max_num_batched_tokens
            # A single image may exceed the budget of a step, otherwise it would never be encoded.
            if image.num_tokens > plan.encoder_tokens_left and not untouched:
                return False
            if self._encodes_enough(sequence.caller, image):
                return False
            reason = "evicted" if self._encoder_cache.was_evicted(image.key) else "new"
            if not self._encoder_cache.reserve(image.key, image.num_tokens, sequence.caller):
                return False
            self.counters.encoder_misses[reason] += 1
            plan.encoder_tokens_left -= image.num_tokens
            plan.images.append((sequence, image))
        if self._encoder_cache.pin(image.key, (sequence.sequence_id, image.start)):
            self.counters.encoder_queries += 1
            self.counters.encoder_hits += hit
        return True

    def _encodes_enough(self, caller: str, image: ImageSpan) -> bool:
        """Whether images of a caller wait for the encoder that fill, with this one, more than half of its cache."""
        waiting = self._encoder_cache.unfilled_tokens(caller)
        capacity = self._encoder_cache.capacity_tokens
        return waiting > 0 and 2 * (waiting + image.num_tokens) > capacity

    def _add_chunk(self, plan: Plan, sequence: Sequence, end: int) -> None:
        start = sequence.num_computed_tokens
        plan.tokens_left -= end - start
        self._shares.charge(sequence.caller, end - start)
        samples = end == sequence.num_tokens
        plan.chunks.append(Chunk(sequence, start, end, samples, sequence.epoch))

    def _preempt(self, sequence: Sequence) -> None:
        self.counters.preemptions += 1
        self._leave(sequence)
        self.waiting.appendleft(sequence)

    def _leave(self, sequence: Sequence) -> None:
        """Remove a sequence from the batch and free what it has there."""
        self.running.remove(sequence)
        sequence.epoch += 1
        heappush(self._free_slots, sequence.slot)
        self._blocks.release(sequence)
        for image in sequence.request.images:
            self._unpin(sequence, image)

    def _unpin(self, sequence: Sequence, image: ImageSpan) -> None:
        self._encoder_cache.unpin(image.key, (sequence.sequence_id, image.start))
