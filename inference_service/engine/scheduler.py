"""Schedules the next step: which tokens of which sequences are computed.

A step takes decodes first, then prompts: callers by what they have had, see `shares`; of each caller first come, first
served, with turns for short prompts, see `prompt_turns`. Who is admitted and who is preempted is told in `batch`. The
oldest sequence can always continue, because `add` refuses sequences that would not fit alone; so every sequence ends.

The next step may be planned while one step is in flight. What is launched counts as computed, because the device works
in order: so pages and slots that are freed meanwhile can be given away at once, as whoever writes to them is queued
behind the step that still uses them. What is shared with other sequences or told to anybody is known: pages are
published, and sequences end, when a step is committed. Results of sequences that have ended meanwhile are dropped. A
sequence that was preempted meanwhile takes its token, and nothing else, as its pages are gone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from collections.abc import Sequence as Seq
import time
from typing import Any

from inference_service.engine.batch import Batch
from inference_service.engine.blocks import BlockManager
from inference_service.engine.constraint_turns import left_out
from inference_service.engine.counters import Counters
from inference_service.engine.encoder_cache import EncoderCache
from inference_service.engine.image_planner import ImagePlanner
from inference_service.engine.pace import Pace
from inference_service.engine.plan import Chunk, Plan
from inference_service.engine.prompt_turns import Prompts, by_caller
from inference_service.engine.sequence import Sequence, SequenceId
from inference_service.engine.shares import Shares
from inference_service.engine_protocol.messages import FinishReason
from inference_service.errors import (
    ContextLengthError,
    ImageTooLargeError,
    RequestIdInUseError,
)
from inference_service.measures import ChoiceTimings


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
        self.counters = Counters()
        self._pace = pace
        self._shortest_first = False
        self._shares = Shares()
        self._clock = clock
        self._blocks = blocks
        self._encoder_cache = encoder_cache
        self._images = ImagePlanner(encoder_cache, self.counters, clock)
        self._batch = Batch(
            blocks, self._images, max_num_seqs=max_num_seqs, counters=self.counters, clock=clock
        )
        self._sequences: dict[SequenceId, Sequence] = {}

    @property
    def running(self) -> Seq[Sequence]:
        """The sequences in the batch, in order of admission."""
        return self._batch.running

    @property
    def waiting(self) -> Collection[Sequence]:
        """The sequences that wait to be admitted; those that were preempted come first."""
        return self._batch.waiting

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
        self._batch.queue(sequences)
        for sequence in sequences:
            self._shares.enter(sequence.caller)

    def schedule(self, *, encoding: bool = False) -> Plan:
        """Plan the next step; the plan is empty if there is nothing to compute.

        Args:
            encoding: Images of earlier plans are being encoded.
        """
        plan = Plan(self.max_num_batched_tokens, self.max_num_batched_tokens)
        self._shares.begin_plan()
        self._blocks.begin_plan()
        late = self._batch.make_room()
        preemptions = self.counters.preemptions
        self._schedule_decodes(plan)
        plan.num_decodes = len(plan.chunks)
        plan.waits = not plan.chunks and any(one.awaits_result for one in self.running)
        if plan.waits:
            return plan
        if self._pace is not None:
            self._shortest_first = not self._shortest_first
            beside = self._pace.tokens_beside(plan.num_decodes, encoding=encoding)
            plan.tokens_left = min(plan.tokens_left, beside)
        # After a preemption, a new sequence would be preempted next.
        admitting = self.counters.preemptions == preemptions
        if late is not None and admitting:
            admitting = self._batch.admit(late)
            # Cached up to its newest token, it is no prompt in progress.
            if late.is_decoding:
                self._schedule_prefill(plan, late, plan.tokens_left)
        self._schedule_prompts(plan, admitting=admitting)
        return plan

    def launched(self, chunks: Iterable[Chunk]) -> None:
        """Count chunks of the last plan as computed, because their work is queued on the device.

        A chunk that is not launched is planned again.
        """
        for chunk in chunks:
            self._shares.charge(chunk.sequence.caller, chunk.end - chunk.start)
            chunk.sequence.num_computed_tokens = chunk.end
            chunk.sequence.num_pending += chunk.extends

    def revert(self, chunks: Seq[Chunk]) -> None:
        """Undo `launched` for the chunks of the newest step, whose results are lost; they are planned again."""
        for chunk in chunks:
            self._shares.charge(chunk.sequence.caller, chunk.start - chunk.end)
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
            images = sequence.images_between(chunk.start, chunk.end)
            passed = [one for one in images if one.start + one.num_tokens <= chunk.end]
            self._images.release(sequence, passed)
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
        self._batch.remove(sequence)
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
        answers = [
            sequence
            for sequence in self._batch.running
            if sequence.is_decoding and sequence.goes_on(self.max_model_len)
        ]
        waits = left_out(answers, self._sequences.values())
        for sequence in answers:
            if sequence in waits:
                continue
            if not plan.tokens_left:
                return
            if not sequence.pages:  # just preempted by an older one
                return
            while not self._blocks.grow(sequence):
                newest = self._batch.running[-1]
                if newest is sequence:
                    return  # waits until an older one frees a page
                self._batch.preempt(newest)
            self._add_chunk(plan, sequence, sequence.num_tokens)

    def _schedule_prompts(self, plan: Plan, *, admitting: bool) -> None:
        """Continue prompts and admit new sequences; callers take turns, see `Prompts` for those of one caller.

        When there is no room for a sequence that can have some, none is admitted that came later, but for callers of
        whom none runs. These come first, and yet leave half of the step to prompts in progress: else whoever sends a
        prompt as large as a step whenever one has ended would stop them all.
        """
        batch = self._batch
        running = batch.running_by_caller
        prompts = self._prompts_by_caller(plan, admitting=admitting)
        in_progress = sum(mine.num_left for mine in prompts.values())
        kept = min(-(-plan.tokens_left // 2), in_progress)
        full = False
        while prompts and plan.tokens_left:
            caller = self._shares.first(prompts, running)
            mine = prompts[caller]
            if mine.running and plan.tokens_left > mine.kept:
                self._schedule_prefill(plan, mine.running.popleft(), plan.tokens_left - mine.kept)
            elif mine.waiting and not (full and caller in running) and batch.admit(mine.waiting[0]):
                limit = plan.tokens_left - (0 if caller in running else kept)
                running[caller] += 1
                self._schedule_prefill(plan, mine.waiting.popleft(), max(0, limit))
            else:
                if mine.waiting and not self._blocks.puts_off(mine.waiting[0]):
                    full = full or batch.may_fit(mine.waiting[0])
                del prompts[caller]

    def _prompts_by_caller(self, plan: Plan, *, admitting: bool) -> dict[str, Prompts]:
        prompts = by_caller(self._batch.running, self._batch.waiting if admitting else ())
        for mine in prompts.values() if self._shortest_first else ():
            admits = bool(mine.waiting) and self._batch.fits(mine.waiting[0])
            mine.shortest_first(plan.tokens_left, admits=admits)
        return prompts

    def _schedule_prefill(self, plan: Plan, sequence: Sequence, limit: int) -> None:
        """Schedule as many of the sequence's tokens as limit and images allow, possibly none."""
        start = sequence.num_computed_tokens
        end = self._images.reach(plan, sequence, min(len(sequence), start + limit))
        if end > start:
            self._add_chunk(plan, sequence, end)

    def _add_chunk(self, plan: Plan, sequence: Sequence, end: int) -> None:
        start = sequence.num_computed_tokens
        plan.tokens_left -= end - start
        self._shares.plan(sequence.caller, end - start)
        samples = end == sequence.num_tokens
        plan.chunks.append(Chunk(sequence, start, end, samples, sequence.epoch))
