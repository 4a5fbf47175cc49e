"""The engine core: takes requests, and computes them step by step."""

from __future__ import annotations

from functools import partial
import logging
from pathlib import Path
from typing import Final

from inference_service.engine.assembly import LoadModel, assemble
from inference_service.engine.compiling import Grammars
from inference_service.engine.constrained import HeldRequest, HeldRequests
from inference_service.engine.device import memory_of
from inference_service.engine.loader import load_model
from inference_service.engine.outputs import ended_output
from inference_service.engine.pipeline import Pipeline
from inference_service.engine.sequence import Sequence, choices_of
from inference_service.engine.validation import check_request
from inference_service.engine_protocol.messages import (
    ChoiceOutput,
    EngineConfig,
    EngineFailure,
    EngineRequest,
    EngineStats,
    FinishReason,
)
from inference_service.errors import InternalError, RequestIdInUseError, ServiceError
from inference_service.grammar.vocabulary import load_vocabulary


_COMPILE_POLL_S: Final = 0.01

logger = logging.getLogger(__name__)


class EngineCore:
    """A loaded model with its caches and its queue.

    Not thread-safe: one loop calls `add`, `abort` and `step` in turn.
    """

    def __init__(self, config: EngineConfig, load: LoadModel = load_model) -> None:
        """Loads the model and allocates its caches.

        Args:
            config: The configuration.
            load: As `load_model`; benchmarks fill a model with random weights instead.
        """
        parts = assemble(config, load)
        self.ready = parts.ready
        self._spec = parts.spec
        self._device = parts.device
        self._blocks = parts.blocks
        self._scheduler = parts.scheduler
        self._runner = parts.runner
        depth = config.pipeline_depth
        self._pipeline = Pipeline(
            parts.scheduler,
            parts.runner,
            parts.encoder_cache,
            parts.pace,
            depth=int(parts.device.type == "cuda") if depth is None else depth,
            device=parts.device,
        )
        vocabulary = partial(load_vocabulary, Path(config.model_dir))
        self._held = HeldRequests(Grammars(vocabulary))

    @property
    def has_work(self) -> bool:
        """Whether any sequence is unfinished, or any step in flight, or any image in progress."""
        return (
            self._scheduler.has_work or self._held.num_sequences > 0 or not self._pipeline.is_empty
        )

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
            steps=self._pipeline.num_launched,
            step_durations=self._pipeline.step_durations,
            encode_durations=self._pipeline.encode_durations,
            batch_sizes=self._pipeline.batch_sizes,
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
        spec = self._spec
        vocab_size = spec.decoder.vocab_size
        check_request(request, len(view), vocab_size=vocab_size, policy=spec.image_policy)
        sequences = choices_of(request, spec.decoder.rope.level)
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
                self._pipeline.end(sequence, FinishReason.ABORTED)

    def step(self) -> list[ChoiceOutput]:
        """Launch or collect a step, or both, and return the outputs of what was collected; see `Pipeline.advance`."""
        outputs = [output for held in self._held.take_ready() for output in self._begin(held)]
        if not self._scheduler.has_work and self._pipeline.is_empty:
            if not outputs and self._held.num_sequences:
                self._held.wait(_COMPILE_POLL_S)
            return outputs
        return outputs + self._pipeline.advance()

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
