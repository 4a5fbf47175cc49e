"""The core of the transformers process: a queue, sequences that take turns by the step, and our sampler.

When growing answers have filled the cache, the youngest sequence is preempted: it loses its cache and keeps its answer
so far, whose tokens are computed again one by one when it is admitted again. That is as slow as the first time, but
every model computes then exactly what it did before, whatever it keeps for its tokens.

Independent of how a model is computed (`generation`) and how prompts are made (`prompts`).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Container
from dataclasses import dataclass, replace
import logging
import time
from typing import Any, Final

import torch
from torch import Tensor

from inference_service.engine.compiling import Grammars
from inference_service.engine.constrained import (
    HeldRequest,
    HeldRequests,
    constraint_failed,
    too_expensive,
)
from inference_service.engine.device import memory_of
from inference_service.engine.outputs import ended_output, token_output
from inference_service.engine.sequence import Sequence, SequenceId
from inference_service.engine.shares import Shares, overdue, overtakes
from inference_service.engine.step_results import ChunkResult
from inference_service.engine_protocol.messages import (
    ChoiceOutput,
    EngineFailure,
    EngineReady,
    EngineRequest,
    EngineStats,
    FinishReason,
    PromptLayout,
    PromptSource,
)
from inference_service.errors import (
    InternalError,
    OutOfMemoryError,
    RequestIdInUseError,
    ServiceError,
)
from inference_service.grammar.matcher import GrammarError
from inference_service.measures import BATCH_BOUNDS, ChoiceTimings, HistogramCounter
from inference_service.transformers_engine.admission import Admission
from inference_service.transformers_engine.generation import Generation, ModuleState
from inference_service.transformers_engine.prompt_logprobs import prompt_logprobs
from inference_service.transformers_engine.prompts import PromptMaker
from inference_service.transformers_engine.turns import TurnSampler


_COMPILE_POLL_S: Final = 0.01

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The loaded parts of a model.

    Attributes:
        model: The model.
        prompts: Makes its prompts.
        grammars: Compiles constraints for its vocabulary.
        ready: What the front is told.
        vocab_size: Width of its logits.
        max_num_seqs: Maximum sequences that take turns.
        state_tokens: Tokens in the cache for which the state of a sequence takes the room.
    """

    model: Any
    prompts: PromptMaker
    grammars: Grammars
    ready: EngineReady
    vocab_size: int
    max_num_seqs: int
    state_tokens: int = 0


class TransformersCore:
    """A `PreparingCore`. One `step` computes one step of one sequence, so that an abort applies before the next."""

    def __init__(self, parts: Parts) -> None:
        self.ready = parts.ready
        self._parts = parts
        self._device = torch.device(parts.ready.device)
        self._state = ModuleState(parts.model)
        self._held = HeldRequests(parts.grammars)
        self._sampler = TurnSampler(
            max_seqs=parts.max_num_seqs,
            max_len=parts.ready.max_model_len,
            vocab_size=parts.vocab_size,
            device=self._device,
        )
        self._room = Admission(
            max_tokens=parts.ready.kv_pages_total,
            max_seqs=parts.max_num_seqs,
            max_length=parts.ready.max_model_len,
            vocab_size=parts.vocab_size,
            state_tokens=parts.state_tokens,
        )
        self._pixels: dict[str, memoryview | bytes] = {}  # of all requests; the front limits them
        self._waiting: deque[Sequence] = deque()
        self._running: deque[Sequence] = deque()
        self._shares = Shares()
        self._num_admitted = 0
        self._generations: dict[SequenceId, Generation] = {}
        self._steps = 0
        self._preemptions = 0
        self._durations = HistogramCounter()
        self._batch_sizes = HistogramCounter(BATCH_BOUNDS)

    @property
    def has_work(self) -> bool:
        """Whether any sequence is unfinished."""
        return bool(self._waiting or self._running) or self._held.num_sequences > 0

    @property
    def stats(self) -> EngineStats:
        """The current counters; a page is one token."""
        return EngineStats(
            running=len(self._running),
            waiting=len(self._waiting) + self._held.num_sequences,
            kv_pages_total=self.ready.kv_pages_total,
            kv_pages_used=self._room.used_tokens,
            kv_page_tokens=self.ready.kv_page_tokens,
            preemptions=self._preemptions,
            steps=self._steps,
            step_durations=self._durations.total,
            batch_sizes=self._batch_sizes.total,
            device_memory=memory_of(self._device),
        )

    def prepare(self, source: PromptSource, pixels: memoryview | bytes) -> PromptLayout:
        """See `PreparingCore`."""
        return self._parts.prompts.prepare(source, pixels).layout

    def add(self, request: EngineRequest, pixels: memoryview | bytes) -> None:
        """Queues all choices of a request; if this raises, none of them.

        The prompt is made when a choice begins: what a processor makes of a request, which may be far more than its
        pixels, is not kept for those that wait.

        Raises:
            InvalidArgumentError: The request does not match the model.
            ContextLengthError: The prompt leaves no room for an answer.
            UnsupportedParameterError: Its log probabilities would need too much memory.
            RequestIdInUseError: A request with this id is in flight.
        """
        if request.request_id in self._pixels or request.request_id in self._held:
            raise RequestIdInUseError(f"request_id {request.request_id!r} is used already.")
        self._room.check(request)
        sequences = [Sequence(request, index) for index in range(request.num_choices)]
        for sequence in sequences:
            sequence.arrived_s = sequence.waits_since_s = time.monotonic()
        self._pixels[request.request_id] = pixels
        if request.constraint is None:
            self._queue(sequences)
        else:
            self._held.hold(sequences, request.constraint, memoryview(b""))

    def abort(self, request_id: str, choice_index: int | None = None) -> None:
        """Ends one choice of a request now, or (None) all, without further outputs. Unknown ids are ignored."""
        self._held.drop(request_id, choice_index)
        for sequence in (*self._waiting, *self._running):
            if sequence.request.request_id == request_id and choice_index in (
                None,
                sequence.choice_index,
            ):
                self._end(sequence, FinishReason.ABORTED)
        self._forget(request_id)

    def step(self) -> list[ChoiceOutput]:
        """Computes the prompt of a sequence that can begin, or else a token of the one whose turn it is."""
        outputs = [output for held in self._held.take_ready() for output in self._begin(held)]
        sequence = self._next()
        if sequence is None:
            if not outputs and self._held.num_sequences:
                self._held.wait(_COMPILE_POLL_S)
            return outputs
        begin_s = time.monotonic()
        self._steps += 1
        self._batch_sizes.add(1)
        try:
            outputs += self._advance(sequence)
        except ServiceError as error:
            outputs.append(self._fail(sequence, error))
        except torch.AcceleratorError:
            raise  # the device is of no use any more: the front starts a new process
        except (torch.OutOfMemoryError, MemoryError):
            logger.exception(
                {"message": "out of memory", "request_id": sequence.request.request_id}
            )
            outputs.append(self._fail(sequence, _out_of_memory(alone=len(self._running) == 1)))
        except Exception:  # a prompt that the model cannot compute must not end the others
            logger.exception(
                {"message": "the model failed", "request_id": sequence.request.request_id}
            )
            outputs.append(self._fail(sequence, InternalError("The model failed on this request.")))
        self._durations.add(time.monotonic() - begin_s)
        return outputs

    # ---- the order of work ----

    def _begin(self, held: HeldRequest) -> list[ChoiceOutput]:
        """Queues a request whose constraint is compiled; the outputs of one that is refused."""
        try:
            held.constrain()
        except ServiceError as error:
            failure = EngineFailure.of(error)
        except Exception:  # a defect with one request must not end the others
            request_id = held.sequences[0].request.request_id
            logger.exception({"message": "a request could not be added", "request_id": request_id})
            failure = EngineFailure.of(InternalError("The model failed on this request."))
        else:
            self._queue(held.sequences)
            return []
        self._pixels.pop(held.sequences[0].request.request_id, None)
        return [ended_output(one, FinishReason.ERROR, failure) for one in held.sequences]

    def _queue(self, sequences: list[Sequence]) -> None:
        self._waiting += sequences
        for sequence in sequences:
            self._shares.enter(sequence.caller)

    def _next(self) -> Sequence | None:
        """The sequence to compute: callers take turns by what they have had, and so do the sequences of each.

        A late one comes first, if it can have its room. When there is no room for a sequence, the next caller has its
        turn.
        """
        running = Counter(sequence.caller for sequence in self._running)
        waiting: dict[str, Sequence] = {}
        for one in self._waiting:
            waiting.setdefault(one.caller, one)
        if not running and not waiting:
            return None
        sequence = self._admit_late(running)
        callers = {*running, *waiting}
        while sequence is None:
            caller = self._shares.first(callers, running)
            callers.remove(caller)
            if caller in waiting and self._room.take(waiting[caller]):
                sequence = waiting[caller]
                self._admit(sequence)
            elif caller in running:
                sequence = next(one for one in self._running if one.caller == caller)
                if not self._make_room(sequence):
                    return self._next()  # at least the oldest goes on
                self._running.remove(sequence)
        self._running.append(sequence)
        is_new = sequence.sequence_id not in self._generations
        self._shares.charge(sequence.caller, sequence.num_prompt_tokens if is_new else 1)
        return sequence

    def _admit_late(self, running: Container[str]) -> Sequence | None:
        """Admits the sequence that is late for longest, of those that find room if who overtook them gives way."""
        for late in overdue(self._waiting, running, time.monotonic()):
            if late.late_since is None:
                late.late_since = self._num_admitted
            overtaking = [one for one in self._running if overtakes(one, late)]
            if self._room.fits(late, without=overtaking):
                overtaking.sort(key=lambda one: one.admission)
                while not self._room.take(late):
                    self._preempt(overtaking.pop())
                self._admit(late)
                return late
        return None

    def _admit(self, sequence: Sequence) -> None:
        self._waiting.remove(sequence)
        sequence.admission = self._num_admitted
        self._num_admitted += 1
        if sequence.num_cached_tokens is None:
            sequence.admitted_s = time.monotonic()
            sequence.num_cached_tokens = 0
        self._sampler.begin(sequence)

    def _make_room(self, sequence: Sequence) -> bool:
        """Makes room for the newest token of a running sequence; False = it was preempted itself.

        The youngest of the caller with the most gives way, or else the youngest of all. The oldest is never preempted,
        so that all sequences end.
        """
        while not self._room.extend(sequence):
            running = Counter(one.caller for one in self._running)
            most, count = running.most_common(1)[0]
            may_leave = [one for one in self._running if count == 1 or one.caller == most]
            youngest = max(may_leave, key=lambda one: (one.arrived_s, one.choice_index))
            self._preempt(youngest)
            if youngest is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Has a running sequence wait again, before all others."""
        self._preemptions += 1
        self._stop(sequence)
        sequence.epoch += 1
        sequence.waits_since_s = time.monotonic()
        self._waiting.appendleft(sequence)

    def _generation(self, sequence: Sequence) -> Generation:
        """What computes a sequence; made at its first step."""
        generation = self._generations.get(sequence.sequence_id)
        if generation is None:
            generation = self._generations[sequence.sequence_id] = Generation(
                self._parts.model,
                self._state,
                self._parts.prompts.inputs_of(sequence, self._pixels[sequence.request.request_id]),
                max_length=self.ready.max_model_len,
                all_logits=sequence.top_prompt_logprobs is not None
                and sequence.num_answer_tokens == 0,
            )
        return generation

    # ---- one step of one sequence ----

    def _advance(self, sequence: Sequence) -> list[ChoiceOutput]:
        generation = self._generation(sequence)
        computed = generation.num_tokens
        logits = generation.logits(sequence.token_ids[computed] if computed else None)
        if generation.num_tokens < len(sequence):
            return []  # a part of the answer from before a preemption, which is known
        is_first = sequence.num_answer_tokens == 0
        with torch.inference_mode():
            result = self._result(sequence, generation, logits)
        if result.token_id is not None:
            self._take(sequence, result.token_id)
        else:
            sequence.finish_reason = FinishReason.LENGTH  # as every probe
        output = token_output(
            sequence,
            result,
            0 if is_first else None,
            _timings(sequence) if is_first else None,
        )
        if sequence.finish_reason is not None:
            self._end(sequence, sequence.finish_reason)
        return [output, *(self._fail(*pair) for pair in too_expensive([sequence]))]

    def _take(self, sequence: Sequence, token_id: int) -> None:
        """Appends a token; raises a ServiceError if the constraint cannot take it."""
        if sequence.constraint is not None:
            try:
                sequence.constraint.take(token_id)
            except GrammarError as error:
                raise constraint_failed(sequence, error) from error
        sequence.token_ids.append(token_id)
        sequence.finish_reason = sequence.reason_to_finish(self.ready.max_model_len)

    def _result(self, sequence: Sequence, generation: Generation, logits: Tensor) -> ChunkResult:
        entries = () if sequence.probe else prompt_logprobs(sequence, generation)
        return replace(self._sampler.choose(sequence, logits), prompt_logprobs=entries)

    # ---- ends ----

    def _fail(self, sequence: Sequence, error: ServiceError) -> ChoiceOutput:
        self._end(sequence, FinishReason.ERROR)
        return ended_output(sequence, FinishReason.ERROR, EngineFailure.of(error))

    def _end(self, sequence: Sequence, reason: FinishReason) -> None:
        """Forgets a sequence; its cache is freed."""
        sequence.finish_reason = reason
        self._shares.leave(sequence.caller)
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        else:
            self._stop(sequence)
        self._forget(sequence.request.request_id)

    def _stop(self, sequence: Sequence) -> None:
        """Frees what a running sequence has."""
        self._running.remove(sequence)
        self._generations.pop(sequence.sequence_id, None)
        self._room.give_back(sequence)
        self._sampler.end(sequence)

    def _forget(self, request_id: str) -> None:
        """Frees the pixels of a prompt whose choices have ended."""
        unfinished = (*self._waiting, *self._running)
        if request_id not in self._held and all(
            s.request.request_id != request_id for s in unfinished
        ):
            self._pixels.pop(request_id, None)


def _timings(sequence: Sequence) -> ChoiceTimings:
    return ChoiceTimings(
        queue_s=sequence.admitted_s - sequence.arrived_s,
        prefill_s=time.monotonic() - sequence.admitted_s,
    )


def _out_of_memory(*, alone: bool) -> OutOfMemoryError:
    """The error for a request; one for which there is no memory although nothing else runs need not be tried again."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if alone:
        return OutOfMemoryError(
            "The device has too little memory for this request, even alone: send a shorter prompt, or fewer or smaller"
            " images."
        )
    return OutOfMemoryError(
        "The device ran out of memory for this request; try again later, or send fewer or smaller images.",
        retry_after_s=1.0,
    )
