"""Launches the scheduler's plans on the runner and collects their results; handles failures of a step.

At depth 0, every step is collected before the next one is planned. At depth 1, the next one is launched before that, so
that the device has work while the host reads results, sends them and plans: sequences go on with tokens that only the
device knows yet. The answers are the same. A row of the second step is wasted where a token turns out to be the last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
import logging
import time

import torch

from inference_service.engine.constrained import constraint_failed, too_expensive
from inference_service.engine.encoder_cache import EncoderCache
from inference_service.engine.encoding import Encoder, EncoderOutOfMemoryError
from inference_service.engine.outputs import ended_output, token_output, unreported_cached_tokens
from inference_service.engine.pace import Pace
from inference_service.engine.plan import Chunk, Plan
from inference_service.engine.runner import ModelRunner
from inference_service.engine.scheduler import Scheduler
from inference_service.engine.sequence import Sequence
from inference_service.engine.step_results import ChunkResult, Launched
from inference_service.engine.stopwatch import Stopwatch
from inference_service.engine_protocol.messages import (
    ChoiceOutput,
    EngineFailure,
    FinishReason,
)
from inference_service.errors import InternalError, OutOfMemoryError, ServiceError
from inference_service.grammar.matcher import GrammarError
from inference_service.measures import BATCH_BOUNDS, Histogram, HistogramCounter


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ticket:
    """A step that was launched but not collected.

    Attributes:
        plan: The plan of the step.
        begin_s: When its launch began, by the monotonic clock.
        launched: The chunks in flight; None if there are none. Those with an image that is still being encoded were
            skipped.
        outputs: The ends of sequences with images that could not be encoded.
        out_of_memory: The launch ran out of memory and has no results; work queued before that may still be running.
        unencoded: Keys of the images for whose encoding there was too little memory.
        encoded: Images were encoded.
    """

    plan: Plan
    begin_s: float
    launched: Launched | None = None
    outputs: Seq[ChoiceOutput] = ()
    out_of_memory: bool = False
    unencoded: AbstractSet[bytes] = frozenset()
    encoded: bool = False

    @property
    def num_tokens(self) -> int:
        """The number of tokens in flight."""
        chunks = self.launched.chunks if self.launched else ()
        return sum(chunk.end - chunk.start for chunk in chunks)


class Pipeline:
    """The steps in flight."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        encoder_cache: EncoderCache[torch.Tensor],
        pace: Pace,
        *,
        depth: int,
        device: torch.device,
    ) -> None:
        """Starts without any step.

        Args:
            scheduler: Plans the steps.
            runner: Runs them.
            encoder_cache: What both share.
            pace: What a step may do beside answers; learns from the steps.
            depth: 0 or 1: the number of steps in flight while one is planned.
            device: The device of the runner.
        """
        self._scheduler = scheduler
        self._runner = runner
        self._pace = pace
        self.depth = depth
        self._in_flight: deque[Ticket] = deque()
        self._encoding = Stopwatch(device)
        self._encoder = Encoder(runner, encoder_cache, self._encoding, device)
        self._durations = HistogramCounter()
        self._batch_sizes = HistogramCounter(BATCH_BOUNDS)
        self._end_s = 0.0
        self.num_launched = 0

    @property
    def is_empty(self) -> bool:
        """Whether no step is in flight, and no image in progress, which another step would drop if nobody waits."""
        return not self._in_flight and not self._encoder.busy

    @property
    def step_durations(self) -> Histogram:
        """How long steps took, each from its launch or the end of the one before it."""
        return self._durations.total

    @property
    def encode_durations(self) -> Histogram:
        """How long the steps encoded images, where they did."""
        return self._encoding.total

    @property
    def batch_sizes(self) -> Histogram:
        """How many sequences the steps had, where they had any."""
        return self._batch_sizes.total

    def advance(self) -> list[ChoiceOutput]:
        """Launch the next step, if there is anything to compute, and collect what is in flight beyond the depth.

        An error of one request ends that request with FinishReason.ERROR; any other error is raised, and then the
        engine must not be used again.
        """
        plan = self._scheduler.schedule(encoding=self._encoder.busy)
        keep = 0
        if not plan.waits and (plan.chunks or self._encoder.busy):
            ticket = self.launch(plan)
            keep = 0 if ticket.out_of_memory else self.depth
        outputs: list[ChoiceOutput] = []
        while len(self._in_flight) > keep:
            outputs += self.collect()
        return outputs

    def launch(self, plan: Plan) -> Ticket:
        """Enqueue the work of a plan: first the images, then one forward pass with sampling.

        Args:
            plan: The last plan of the scheduler; it has chunks, or images of earlier plans are being encoded.

        Returns:
            The step, which is in flight now. On an asynchronous device, its results may not be computed yet.
        """
        self.num_launched += 1
        begin_s = time.monotonic()
        try:
            self._encoder.add(plan.images)
            encode_s = self._encode_s(plan)
            broken = self._encoder.run(encode_s) if encode_s else set()
            missing = broken | self._encoder.pending
            chunks = [chunk for chunk in plan.chunks if not _needs(chunk, missing)]
            launched = self._runner.launch(chunks) if chunks else None
        except EncoderOutOfMemoryError as out_of_memory:
            logger.exception("out of memory while encoding images")
            ticket = Ticket(plan, begin_s, out_of_memory=True, unencoded=out_of_memory.keys)
        except (torch.OutOfMemoryError, MemoryError):
            logger.exception({"message": "out of memory in a step", "request_id": _last(plan)})
            ticket = Ticket(plan, begin_s, out_of_memory=True)
        else:
            self._scheduler.launched(chunks)
            error = InternalError("The engine failed to encode an image.")
            ended = [self.fail(sequence, error) for sequence in self._waiting_for(broken)]
            ticket = Ticket(plan, begin_s, launched, ended, encoded=encode_s > 0)
        self._in_flight.append(ticket)
        return ticket

    def collect(self) -> list[ChoiceOutput]:
        """Commit the results of the oldest step in flight, waiting for those that are read; returns its outputs."""
        ticket = self._in_flight.popleft()
        try:
            results = self._runner.collect(ticket.launched) if ticket.launched else []
        except (torch.OutOfMemoryError, MemoryError):
            logger.exception(
                {"message": "out of memory reading a step", "request_id": _last(ticket.plan)}
            )
            lost = True
        else:
            lost = ticket.out_of_memory
        # Outside of the except clause, so that its traceback no longer references the tensors of the step.
        outputs = self._relieve(ticket) if lost else self._settle(ticket, results)
        end_s = time.monotonic()
        step_s = end_s - max(ticket.begin_s, self._end_s)
        self._end_s = end_s
        self._durations.add(step_s)
        if ticket.launched is not None and not lost:
            self._batch_sizes.add(len(ticket.launched.chunks))
            num_decodes = ticket.plan.num_decodes
            num_prefill_tokens = ticket.num_tokens - num_decodes
            # What the next step encodes may have held up the host, and so be in the time of this one.
            encoded = ticket.encoded or any(later.encoded for later in self._in_flight)
            self._pace.note(num_decodes, num_prefill_tokens, step_s, encoded=encoded)
        return outputs

    def fail(self, sequence: Sequence, error: ServiceError) -> ChoiceOutput:
        """End a sequence with an error; returns its last output."""
        self.end(sequence, FinishReason.ERROR)
        return ended_output(sequence, FinishReason.ERROR, EngineFailure.of(error))

    def end(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence now; its results in flight are dropped."""
        self._scheduler.finish(sequence, reason)
        self._runner.remove(sequence)

    def _settle(self, ticket: Ticket, results: Iterable[ChunkResult]) -> list[ChoiceOutput]:
        chunks = ticket.launched.chunks if ticket.launched else ()
        committed = [self._commit(*pair) for pair in zip(chunks, results, strict=True)]
        answers = (chunk.sequence for chunk in chunks)
        expensive = list(too_expensive(answers, self._scheduler.running))
        ended = [self.fail(*pair) for pair in expensive]
        return [*(output for output in committed if output is not None), *ended, *ticket.outputs]

    def _relieve(self, ticket: Ticket) -> list[ChoiceOutput]:
        """Free memory after a step without results: ends one sequence; the others are planned again.

        It is the last one with an image that was too much, or the one scheduled last.
        """
        lost = [ticket, *self._in_flight]
        self._in_flight.clear()
        for one in reversed(lost):
            if one.launched is not None:
                self._scheduler.revert(one.launched.chunks)
            self._runner.distrust(one.plan.chunks)
        self._encoder.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        error = OutOfMemoryError(
            "The device ran out of memory for this request; try again later, or send fewer or smaller images.",
            retry_after_s=1.0,
        )
        if ticket.unencoded:
            alive = self._waiting_for(ticket.unencoded)
        else:
            alive = [c.sequence for c in ticket.plan.chunks if c.sequence.finish_reason is None]
        ended = [output for one in lost for output in one.outputs]
        return [*ended, *(self.fail(sequence, error) for sequence in alive[-1:])]

    def _waiting_for(self, keys: AbstractSet[bytes]) -> list[Sequence]:
        """The running sequences with one of these images ahead, in order."""
        return [
            sequence
            for sequence in self._scheduler.running
            if any(
                image.key in keys
                for image in sequence.images_between(sequence.num_computed_tokens, len(sequence))
            )
        ]

    def _encode_s(self, plan: Plan) -> float:
        """How long the step encodes its images and those of earlier steps; 0 = not at all."""
        if not self._encoder.busy:
            return 0.0
        num_prefill_tokens = sum(
            chunk.end - chunk.start for chunk in plan.chunks[plan.num_decodes :]
        )
        return self._pace.encode_s_beside(plan.num_decodes, num_prefill_tokens)

    def _commit(self, chunk: Chunk, result: ChunkResult) -> ChoiceOutput | None:
        """Commit the result of a chunk; returns its output, if any."""
        sequence = chunk.sequence
        if sequence.finish_reason is not None:  # meanwhile
            return None
        if (
            chunk.epoch != sequence.epoch and not chunk.samples
        ):  # it may have begun again: a part of its prompt
            return None
        if sequence.constraint is not None and result.token_id is not None:
            try:
                sequence.constraint.take(result.token_id)
            except GrammarError as error:
                return self.fail(sequence, constraint_failed(sequence, error))
        num_cached_tokens = unreported_cached_tokens(sequence)
        reason = self._scheduler.commit(chunk, result.token_id)
        sequence.num_prompt_logprobs += len(result.prompt_logprobs)
        if reason is not None:
            self._runner.remove(sequence)
        if result.token_id is None and result.probe is None and not result.prompt_logprobs:
            return None
        is_first = result.probe is not None or (
            result.token_id is not None and sequence.num_answer_tokens == 1
        )
        timings = self._scheduler.timings(sequence) if is_first else None
        return token_output(sequence, result, num_cached_tokens, timings)


def _last(plan: Plan) -> str:
    """The request that ends if a step runs out of memory."""
    return plan.chunks[-1].sequence.request.request_id


def _needs(chunk: Chunk, keys: AbstractSet[bytes]) -> bool:
    """Whether one of these images has a token in the chunk."""
    images = chunk.sequence.images_between(chunk.start, chunk.end) if keys else ()
    return any(image.key in keys for image in images)
