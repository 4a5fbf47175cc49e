"""The engine core: computes requests step by step, and handles failures of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
import logging
from pathlib import Path
import time

import torch
from torch import Tensor

from inference_service.engine.blocks import BlockManager
from inference_service.engine.constrained import (
    Grammars,
    HeldRequest,
    HeldRequests,
    constraint_failed,
)
from inference_service.engine.cpu_forms import (
    pack_large,
    quantise_large,
    refuse_quantization,
    settle_form,
)
from inference_service.engine.device import memory_of, note_progress
from inference_service.engine.encoder_cache import EncoderCache
from inference_service.engine.encoding import Encoder, EncoderOutOfMemoryError
from inference_service.engine.loader import load_model
from inference_service.engine.memory import (
    count_kv_pages,
    plan_placement,
    refuse_impossible_sizes,
    resolve_devices,
    resolve_dtype,
    resolve_max_model_len,
)
from inference_service.engine.outputs import ended_output, token_output, unreported_cached_tokens
from inference_service.engine.pace import Pace
from inference_service.engine.runner import ChunkResult, Launched, ModelRunner
from inference_service.engine.scheduler import Chunk, Plan, Scheduler
from inference_service.engine.sequence import Sequence
from inference_service.engine.stopwatch import Stopwatch
from inference_service.engine.validation import check_request
from inference_service.engine_protocol.messages import (
    ChoiceOutput,
    EngineConfig,
    EngineFailure,
    EngineReady,
    EngineRequest,
    EngineStats,
    FinishReason,
)
from inference_service.errors import (
    InternalError,
    OutOfMemoryError,
    RequestIdInUseError,
    ServiceError,
)
from inference_service.families.registry import load_spec
from inference_service.families.tables import kv_bytes_per_token, module_parts
from inference_service.grammar.matcher import GrammarError
from inference_service.grammar.vocabulary import load_vocabulary
from inference_service.measures import BATCH_BOUNDS, HistogramCounter
from inference_service.models.vision_language import VisionLanguageModel
from inference_service.processor import usable_cores


_COMPILE_POLL_S = 0.01
MAX_ENCODE_S = 1.0
"""How long a step encodes images."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ticket:
    """A step that was launched but not collected.

    Attributes:
        plan: The plan of the step.
        broken: Keys of images that could not be encoded; their chunks were skipped.
        launched: The chunks in flight; None if there are none. Those with an image that is still being encoded were
            skipped.
        out_of_memory: The launch ran out of memory and has no results; work queued before that may still be running.
        unencoded: Keys of the images for whose encoding there was too little memory.
        encoded: Images were encoded.
    """

    plan: Plan
    broken: AbstractSet[bytes] = frozenset()
    launched: Launched | None = None
    out_of_memory: bool = False
    unencoded: AbstractSet[bytes] = frozenset()
    encoded: bool = False

    @property
    def num_tokens(self) -> int:
        """The number of tokens in flight."""
        chunks = self.launched.chunks if self.launched else ()
        return sum(chunk.end - chunk.start for chunk in chunks)


class EngineCore:
    """A loaded model with its caches and its queue.

    Not thread-safe: one loop calls `add`, `abort` and `step` in turn. `step` is `launch` and `collect` of one plan;
    the next plan must not be made in between, because it depends on the results that `collect` commits.
    """

    def __init__(
        self, config: EngineConfig, load: Callable[..., VisionLanguageModel] = load_model
    ) -> None:
        """Loads the model and allocates its caches.

        Args:
            config: The configuration.
            load: As `load_model`; benchmarks fill a model with random weights instead.
        """
        started = time.monotonic()
        model_dir = Path(config.model_dir)
        spec = load_spec(model_dir)
        devices = resolve_devices(config.device)
        dtype = resolve_dtype(config.dtype, spec.checkpoint_dtype, devices[0])
        on_cpu = devices[0].type == "cpu"
        if on_cpu or config.cpu_threads is not None:
            torch.set_num_threads(config.cpu_threads or usable_cores())
        quantised = config.quantization != "none"
        if quantised:
            refuse_quantization(config.quantization, devices)
        packed = False
        if on_cpu:
            dtype, packed = settle_form(config.dtype, dtype, spec.decoder)
        refuse_impossible_sizes(config, spec, devices, dtype)
        placement = plan_placement(config, spec, devices, dtype)
        model = load(
            model_dir,
            dtype=dtype,
            device=devices[0],
            placement=placement,
            gpu_kernels=config.gpu_kernels,
        )
        if quantised:
            quantise_large(model.decoder)
        if packed:
            pack_large(model)
        num_pages = count_kv_pages(config, model)
        max_model_len = min(resolve_max_model_len(config, spec), num_pages * config.page_size)
        self._vocab_size = spec.decoder.vocab_size
        self._image_policy = spec.image_policy
        self._rope = spec.decoder.rope
        self._blocks = BlockManager(
            num_pages, config.page_size, enable_prefix_caching=config.enable_prefix_caching
        )
        self._encoder_cache: EncoderCache[Tensor] = EncoderCache(config.encoder_cache_tokens)
        self._pace = Pace(config.max_num_batched_tokens, config.max_decode_slowdown)
        self._scheduler = Scheduler(
            self._blocks,
            self._encoder_cache,
            max_model_len=max_model_len,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            pace=self._pace,
        )
        self._runner = ModelRunner(
            model,
            model.new_kv_cache(num_pages, config.page_size),
            self._encoder_cache,
            page_size=config.page_size,
            max_num_seqs=config.max_num_seqs,
            max_model_len=max_model_len,
        )
        self._held = HeldRequests(Grammars(partial(load_vocabulary, model_dir)))
        if on_cpu:  # on a GPU a step takes less than a second
            note_progress(model)
        self._steps = 0
        self._device = devices[0]
        self._step_durations = HistogramCounter()
        self._batch_sizes = HistogramCounter(BATCH_BOUNDS)
        self._encoding = Stopwatch(devices[0])
        self._encoder = Encoder(self._runner, self._encoder_cache, self._encoding, devices[0])
        self.ready = _ready(
            model,
            devices,
            max_model_len=max_model_len,
            num_pages=num_pages,
            page_size=config.page_size,
            load_seconds=time.monotonic() - started,
        )

    @property
    def has_work(self) -> bool:
        """Whether any sequence is unfinished."""
        return self._scheduler.has_work or self._held.num_sequences > 0

    @property
    def stats(self) -> EngineStats:
        """The current counters. Prefix counters count prompt tokens, encoder counters count images."""
        blocks, scheduler, counters = self._blocks, self._scheduler, self._scheduler.counters
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting) + self._held.num_sequences,
            kv_pages_total=blocks.num_pages,
            kv_pages_used=blocks.num_used,
            kv_pages_cached=blocks.num_cached,
            kv_page_tokens=blocks.page_size,
            prefix_queries=counters.prefix_queries,
            prefix_hits=counters.prefix_hits,
            prefix_misses=counters.prefix_misses,
            encoder_queries=counters.encoder_queries,
            encoder_hits=counters.encoder_hits,
            encoder_misses=counters.encoder_misses,
            preemptions=counters.preemptions,
            steps=self._steps,
            step_durations=self._step_durations.total,
            encode_durations=self._encoding.total,
            batch_sizes=self._batch_sizes.total,
            device_memory=memory_of(self._device),
        )

    def add(self, request: EngineRequest, pixels: memoryview | bytes) -> None:
        """Queue all choices of a request; if this raises, none of them.

        Args:
            request: The request.
            pixels: RGB uint8 of its images. Kept without a copy until the last choice has ended, because the images of
                a preempted sequence may have to be encoded again.

        Raises:
            InvalidArgumentError: The request is inconsistent or does not match the model.
            ContextLengthError: The prompt leaves no room for an answer.
            ImageTooLargeError: An image has more tokens than the encoder cache.
            RequestIdInUseError: A request with this id is in flight.
        """
        view = memoryview(pixels).cast("B")
        check_request(request, len(view), vocab_size=self._vocab_size, policy=self._image_policy)
        sequences = [Sequence(request, choice_index) for choice_index in range(request.num_choices)]
        for sequence in sequences:
            sequence.rope_level = self._rope.level(sequence.num_prompt_tokens)
        if request.constraint is None:
            self._enqueue(sequences, view)
            return
        self._scheduler.check(sequences)
        if request.request_id in self._held:
            raise RequestIdInUseError(f"request_id {request.request_id!r} is used already.")
        self._held.hold(sequences, request.constraint, view)

    def _enqueue(self, sequences: list[Sequence], pixels: memoryview) -> None:
        self._scheduler.add(sequences)
        try:
            self._runner.add(sequences, pixels)
        except BaseException:
            # Sequences that the runner does not know would end every later step.
            for sequence in sequences:
                self._scheduler.finish(sequence, FinishReason.ERROR)
            raise

    def abort(self, request_id: str, choice_index: int | None = None) -> None:
        """End one choice of a request now, or (None) all, without further outputs. Unknown ids are ignored."""
        self._held.drop(request_id, choice_index)
        for sequence in self._scheduler.of_request(request_id):
            if choice_index in (None, sequence.choice_index):
                self._end(sequence, FinishReason.ABORTED)

    def step(self) -> list[ChoiceOutput]:
        """Compute one step and return its outputs.

        An error of one request ends that request with FinishReason.ERROR; any other error is raised, and then the
        engine must not be used again.
        """
        begin_s = time.monotonic()
        outputs = [output for held in self._held.take_ready() for output in self._begin(held)]
        plan = self._scheduler.schedule(encoding=self._encoder.busy)
        if not plan.chunks and not self._encoder.busy:
            if not outputs and self._held.num_sequences:
                self._held.wait(_COMPILE_POLL_S)
            return outputs
        step_begin_s = time.monotonic()
        ticket = self.launch(plan)
        outputs += self.collect(ticket)
        end_s = time.monotonic()
        self._step_durations.add(end_s - begin_s)
        if ticket.launched is not None:
            self._batch_sizes.add(len(ticket.launched.chunks))
            tokens = ticket.num_tokens - plan.num_decodes
            self._pace.note(plan.num_decodes, tokens, end_s - step_begin_s, encoded=ticket.encoded)
        return outputs

    def _begin(self, held: HeldRequest) -> list[ChoiceOutput]:
        """Queue a request whose constraint is compiled; returns the outputs of one that is refused."""
        try:
            held.constrain()
            self._enqueue(held.sequences, held.pixels)
        except ServiceError as error:
            failure = EngineFailure.of(error)
        except Exception:  # a defect with one request must not end the others
            request_id = held.sequences[0].request.request_id
            logger.exception({"message": "a request could not be added", "request_id": request_id})
            failure = EngineFailure.of(InternalError("The engine failed on this request."))
        else:
            return []
        return [ended_output(one, FinishReason.ERROR, failure) for one in held.sequences]

    def launch(self, plan: Plan) -> Ticket:
        """Enqueue the work of a plan: first the images, then one forward pass with sampling.

        Args:
            plan: The last plan of the scheduler; it has chunks.

        Returns:
            The ticket for `collect`. On an asynchronous device, the results may not be computed yet.
        """
        self._steps += 1
        try:
            self._encoder.add(plan.images)
            encode_s = self._encode_s(plan)
            broken = self._encoder.run(encode_s) if encode_s else set()
            missing = broken | self._encoder.pending
            chunks = [chunk for chunk in plan.chunks if not _needs(chunk, missing)]
            launched = self._runner.launch(chunks) if chunks else None
        except EncoderOutOfMemoryError as error:
            logger.exception("out of memory while encoding images")
            return Ticket(plan, out_of_memory=True, unencoded=error.keys)
        except (torch.OutOfMemoryError, MemoryError):
            logger.exception({"message": "out of memory in a step", "request_id": _last(plan)})
            return Ticket(plan, out_of_memory=True)
        return Ticket(plan, broken, launched, encoded=encode_s > 0)

    def collect(self, ticket: Ticket) -> list[ChoiceOutput]:
        """Commit the results of a step, waiting for those that are read, and return its outputs.

        Every ticket is collected once, in the order of launches.
        """
        if ticket.out_of_memory:
            return self._relieve(ticket)
        try:
            results = self._runner.collect(ticket.launched) if ticket.launched else []
        except (torch.OutOfMemoryError, MemoryError):
            logger.exception(
                {"message": "out of memory reading a step", "request_id": _last(ticket.plan)}
            )
        else:
            return self._settle(ticket, results)
        # Outside of the except clause, so that its traceback no longer references the tensors of the step.
        return self._relieve(ticket)

    def _settle(self, ticket: Ticket, results: Iterable[ChunkResult]) -> list[ChoiceOutput]:
        """Commit the results and end the sequences with images that could not be encoded."""
        chunks = ticket.launched.chunks if ticket.launched else ()
        committed = (self._commit(*pair) for pair in zip(chunks, results, strict=True))
        outputs = [output for output in committed if output is not None]
        outputs += [
            self._fail(sequence, InternalError("The engine failed to encode an image."))
            for sequence in self._waiting_for(ticket.broken)
        ]
        return outputs

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

    def _relieve(self, ticket: Ticket) -> list[ChoiceOutput]:
        """Free memory by ending the sequence scheduled last, or the last one with an image that was too much.

        The others are scheduled again.
        """
        chunks = ticket.plan.chunks
        self._encoder.clear()
        self._runner.distrust(chunks)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if ticket.unencoded:
            last = self._waiting_for(ticket.unencoded)[-1:]
        else:
            last = [chunk.sequence for chunk in chunks[-1:]]
        error = OutOfMemoryError(
            "The device ran out of memory for this request; try again later, or send fewer or smaller images.",
            retry_after_s=1.0,
        )
        return [self._fail(sequence, error) for sequence in last]

    def _encode_s(self, plan: Plan) -> float:
        """How long the step encodes its images and those of earlier steps; 0 = not at all."""
        if not self._encoder.busy:
            return 0.0
        num_prefill_tokens = sum(
            chunk.end - chunk.start for chunk in plan.chunks[plan.num_decodes :]
        )
        return self._pace.encode_s_beside(plan.num_decodes, num_prefill_tokens, MAX_ENCODE_S)

    def _commit(self, chunk: Chunk, result: ChunkResult) -> ChoiceOutput | None:
        """Commit the result of a chunk; returns its output, if any."""
        sequence = chunk.sequence
        if sequence.constraint is not None and result.token_id is not None:
            try:
                sequence.constraint.take(result.token_id)
            except GrammarError as error:
                return self._fail(sequence, constraint_failed(sequence, error))
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

    def _fail(self, sequence: Sequence, error: ServiceError) -> ChoiceOutput:
        return self._end(sequence, FinishReason.ERROR, EngineFailure.of(error))

    def _end(
        self, sequence: Sequence, reason: FinishReason, failure: EngineFailure | None = None
    ) -> ChoiceOutput:
        self._scheduler.finish(sequence, reason)
        self._runner.remove(sequence)
        return ended_output(sequence, reason, failure)


def _ready(
    model: VisionLanguageModel,
    devices: Iterable[torch.device],
    *,
    max_model_len: int,
    num_pages: int,
    page_size: int,
    load_seconds: float,
) -> EngineReady:
    """What the front is told about the loaded model and its cache."""
    return EngineReady(
        device=",".join(map(str, devices)),
        slow_path="" if model.placement is None else f"{model.placement}, one after the other",
        dtype=str(model.dtype).removeprefix("torch."),
        max_model_len=max_model_len,
        kv_pages_total=num_pages,
        kv_page_tokens=page_size,
        kv_bytes_per_token=kv_bytes_per_token(model.spec, model.dtype.itemsize),
        weight_bytes=model.weight_bytes,
        parts=module_parts(model.spec),
        load_seconds=load_seconds,
    )


def _last(plan: Plan) -> str:
    """The request that ends if a step runs out of memory."""
    return plan.chunks[-1].sequence.request.request_id


def _needs(chunk: Chunk, keys: AbstractSet[bytes]) -> bool:
    """Whether one of these images has a token in the chunk."""
    images = chunk.sequence.images_between(chunk.start, chunk.end) if keys else ()
    return any(image.key in keys for image in images)
