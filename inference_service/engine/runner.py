"""Runs one step on the device: computes scheduled chunks and samples tokens.

`launch` enqueues the work of a step, `collect` waits for its results, if there are any: a step that only computes
chunks of prompts may still be running afterwards. On a CPU, the work is done when `launch` returns.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np
import torch
from torch import Tensor

from inference_service.engine.encoder_cache import EncoderCache
from inference_service.engine.inputs import InputBuffers, SequenceInput
from inference_service.engine.masks import MaskBuffers
from inference_service.engine.sampler import (
    LogprobTensors,
    SamplingRow,
    candidate_logprobs,
    sample,
    token_logprobs,
)
from inference_service.engine.scheduler import Chunk
from inference_service.engine.sequence import Sequence, SequenceId
from inference_service.engine_protocol.messages import ImageSpan, PositionLogprobs, ProbeResult
from inference_service.families.registry import family_of
from inference_service.models.batch import ForwardBatch, KVCache
from inference_service.models.vision_language import VisionLanguageModel


PROMPT_LOGITS_ROWS = 256
"""Maximum rows of prompt logits in memory at once: with a vocabulary of 150,000, 256 rows are 150 MB."""


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """The result of one chunk.

    Attributes:
        token_id: The next token, if the chunk samples one.
        probe: The result of a probe, if the chunk ends with it.
        logprobs: Its log probabilities, if requested.
        prompt_logprobs: Log probabilities of the prompt tokens that follow the chunk's tokens, if requested and not yet
            reported.
    """

    token_id: int | None = None
    probe: ProbeResult | None = None
    logprobs: PositionLogprobs | None = None
    prompt_logprobs: tuple[PositionLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Launched:
    """A step in flight; its results on the device have not been read yet.

    Attributes:
        chunks: The chunks of the step.
        token_ids: [R] int64: the next token of every chunk that samples, in order; None if none does. For a probe it is
            the most likely one.
        candidates: [N] float32: log probabilities of the candidates of all probes, in order; None without probes.
        logprobs: Log probabilities of those of the R tokens for which they are requested.
        prompt_logprobs: Prompt log probabilities in parts, by index of the chunk.
    """

    chunks: Seq[Chunk]
    token_ids: Tensor | None
    candidates: Tensor | None
    logprobs: LogprobTensors | None
    prompt_logprobs: dict[int, list[LogprobTensors]]


@dataclass(frozen=True, slots=True)
class _Prompt:
    """The data of a request's prompt for all its choices.

    Attributes:
        positions: [3, prompt tokens].
        delta: Offset of positions after the prompt.
        pixels: RGB uint8 of all images.
    """

    positions: np.ndarray
    delta: int
    pixels: memoryview


class ModelRunner:
    """Runs the model with a paged KV cache."""

    def __init__(
        self,
        model: VisionLanguageModel,
        kv_cache: KVCache,
        encoder_cache: EncoderCache[Tensor],
        *,
        page_size: int,
        max_num_batched_tokens: int,
        max_num_seqs: int,
        max_model_len: int,
    ) -> None:
        self._model = model
        self._kv_cache = kv_cache
        self._encoder_cache = encoder_cache
        # Two, so that the next step can be packed while one is in flight.
        self._buffers = cycle(
            InputBuffers(
                max_tokens=max_num_batched_tokens,
                max_seqs=max_num_seqs,
                max_pages=-(-max_model_len // page_size),
                page_size=page_size,
                device=model.device,
                with_rope_levels=model.spec.decoder.rope.ntk is not None,
            )
            for _ in range(2)
        )
        self._masks = MaskBuffers(max_num_seqs)
        self._prompts: dict[SequenceId, _Prompt] = {}

    def add(self, sequences: Seq[Sequence], pixels: memoryview) -> None:
        """Prepare the sequences of one request, all or (if this raises) none.

        `pixels` is kept, not copied, until the last `remove`.
        """
        spec, request = self._model.spec, sequences[0].request
        positions, delta = family_of(spec).positions(
            len(request.prompt_token_ids), request.images, spec.image_policy.merge_size
        )
        prompt = _Prompt(positions, delta, pixels)
        for sequence in sequences:
            self._prompts[sequence.sequence_id] = prompt

    def remove(self, sequence_id: SequenceId) -> None:
        """Forget a sequence."""
        del self._prompts[sequence_id]

    @torch.inference_mode()
    def encode(self, images: Seq[tuple[Sequence, ImageSpan]]) -> None:
        """Enqueue one pass of the vision tower and put the images' embeddings into the encoder cache."""
        embeddings = self._model.encode_images(
            [self._pixels(sequence, image) for sequence, image in images],
            [image.grid for _, image in images],
        )
        for (_, image), embedding in zip(images, embeddings, strict=True):
            # A copy: `encode_images` returns views, each of which would keep the memory of all images.
            self._encoder_cache.fill(image.key, embedding.clone())

    @torch.inference_mode()
    def launch(self, chunks: Seq[Chunk]) -> Launched:
        """Enqueue one forward pass over the chunks, and sampling where a chunk ends with its sequence.

        Waits until the inputs of the step before the previous one are on the device, as their buffers are reused.
        """
        buffers = next(self._buffers)
        batch = self._pack(chunks, buffers)
        hidden = self._model.forward(batch, self._kv_cache)
        starts: list[int] = batch.attention.host_query_start.tolist()
        samples = [index for index, chunk in enumerate(chunks) if chunk.samples]
        token_ids, candidates, logprobs = None, None, None
        if samples:
            logits = self._model.logits(hidden[buffers.rows([starts[i + 1] - 1 for i in samples])])
            sampled = [chunks[i].sequence for i in samples]
            token_ids, logprobs = self._sample(logits, sampled)
            candidates = self._judge(logits, sampled)
        prompt_logprobs = {
            index: self._prompt_logprobs(hidden[starts[index] : starts[index + 1]], chunk)
            for index, chunk in enumerate(chunks)
            if chunk.sequence.top_prompt_logprobs is not None
        }
        return Launched(chunks, token_ids, candidates, logprobs, prompt_logprobs)

    def collect(self, launched: Launched) -> list[ChunkResult]:
        """Wait for the next tokens and log probabilities of a step, if there are any, and return its results."""
        token_ids = iter([] if launched.token_ids is None else launched.token_ids.tolist())
        candidates = iter([] if launched.candidates is None else launched.candidates.tolist())
        logprobs = iter([] if launched.logprobs is None else launched.logprobs.read())
        results = []
        for index, chunk in enumerate(launched.chunks):
            if chunk.samples and (probe := chunk.sequence.probe) is not None:
                values = tuple(islice(candidates, len(probe.candidate_ids)))
                result = ProbeResult(logprobs=values, top_id=next(token_ids))
                results.append(ChunkResult(probe=result))
                continue
            wants_logprobs = chunk.samples and chunk.sequence.sampling.logprobs is not None
            parts = launched.prompt_logprobs.get(index, [])
            results.append(
                ChunkResult(
                    token_id=next(token_ids) if chunk.samples else None,
                    logprobs=next(logprobs) if wants_logprobs else None,
                    prompt_logprobs=tuple(entry for part in parts for entry in part.read()),
                )
            )
        return results

    def _pack(self, chunks: Seq[Chunk], buffers: InputBuffers) -> ForwardBatch:
        inputs = [
            SequenceInput(
                token_ids=chunk.sequence.token_ids[chunk.start : chunk.end],
                positions=self._positions(chunk),
                start=chunk.start,
                pages=chunk.sequence.pages,
                rope_level=chunk.sequence.rope_level,
            )
            for chunk in chunks
        ]
        return buffers.pack(inputs, *self._image_rows(chunks))

    def _positions(self, chunk: Chunk) -> np.ndarray:
        """M-RoPE positions [3, tokens of the chunk]; after the prompt they are equal on all axes."""
        prompt = self._prompts[chunk.sequence.sequence_id]
        known = prompt.positions[:, chunk.start : chunk.end]
        first = chunk.start + known.shape[1]
        if first == chunk.end:
            return known
        further = np.arange(first, chunk.end, dtype=np.int64) + prompt.delta
        further = np.broadcast_to(further, (3, len(further)))
        return np.concatenate([known, further], axis=1) if known.shape[1] else further

    def _image_rows(self, chunks: Seq[Chunk]) -> tuple[list[int], list[Tensor]]:
        """Rows of the batch that are image tokens, and their embeddings."""
        rows: list[int] = []
        embeddings: list[Tensor] = []
        base = 0
        for chunk in chunks:
            for image in chunk.sequence.images_between(chunk.start, chunk.end):
                first = max(image.start, chunk.start)
                last = min(image.start + image.num_tokens, chunk.end)
                embedding = self._encoder_cache.get(image.key)
                assert embedding is not None, "scheduled before its image was encoded"
                embeddings.append(embedding[first - image.start : last - image.start])
                rows.extend(range(base + first - chunk.start, base + last - chunk.start))
            base += chunk.end - chunk.start
        return rows, embeddings

    def _pixels(self, sequence: Sequence, image: ImageSpan) -> Tensor:
        """Pixels [frames, H, W, 3] uint8; copied, as the caller's buffer may be read-only and shared."""
        pixels = self._prompts[sequence.sequence_id].pixels
        part = bytearray(pixels[image.pixel_offset : image.pixel_offset + image.pixel_bytes])
        return torch.frombuffer(part, dtype=torch.uint8).view(-1, image.height, image.width, 3)

    def _sample(
        self, logits: Tensor, sequences: Seq[Sequence]
    ) -> tuple[Tensor, LogprobTensors | None]:
        """The next token of each row of logits and, where requested, log probabilities."""
        rows = [
            SamplingRow(
                sequence.sampling,
                sequence.request.prompt_token_ids,
                sequence.token_ids[sequence.num_prompt_tokens :],
                sequence.choice_index,
                is_masked=sequence.constraint is not None and sequence.constraint.active,
                awaits_mask=sequence.constraint is not None and not sequence.constraint.active,
            )
            for sequence in sequences
        ]
        # A GPU computes the forward pass meanwhile.
        mask = self._masks.fill(sequences, logits.shape[-1], logits.device)
        token_ids = sample(logits, rows, mask)
        wanted = [index for index, row in enumerate(rows) if row.params.logprobs is not None]
        if not wanted:
            return token_ids, None
        places = torch.tensor(wanted, device=logits.device)
        num_top = [rows[index].params.logprobs or 0 for index in wanted]
        return token_ids, token_logprobs(logits[places], token_ids[places], num_top)

    def _judge(self, logits: Tensor, sequences: Seq[Sequence]) -> Tensor | None:
        """Log probabilities of the candidates of those that are probes."""
        candidates = [
            (row, sequence.probe.candidate_ids)
            for row, sequence in enumerate(sequences)
            if sequence.probe is not None
        ]
        return candidate_logprobs(logits, candidates) if candidates else None

    def _prompt_logprobs(self, hidden: Tensor, chunk: Chunk) -> list[LogprobTensors]:
        """Log probabilities of the prompt token after each row, without those reported before a preemption."""
        sequence = chunk.sequence
        first = max(chunk.start, sequence.num_prompt_logprobs)
        last = min(chunk.end, sequence.num_prompt_tokens - 1)
        parts = []
        for start in range(first, last, PROMPT_LOGITS_ROWS):
            end = min(start + PROMPT_LOGITS_ROWS, last)
            logits = self._model.logits(hidden[start - chunk.start : end - chunk.start])
            targets = torch.tensor(sequence.token_ids[start + 1 : end + 1], device=logits.device)
            num_top = [sequence.top_prompt_logprobs or 0] * len(targets)
            parts.append(token_logprobs(logits, targets, num_top))
        return parts
