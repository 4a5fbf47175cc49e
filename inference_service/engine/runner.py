"""One step on the device: scheduled chunks in, sampled tokens out.

Owns the packing of chunks into one batch, the encoding of images, and what the model needs to know of a prompt
(positions, pixels).
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from inference_service.engine.encoder_cache import EncoderCache
from inference_service.engine.sampler import SamplingRow, sample, token_logprobs
from inference_service.engine.scheduler import Chunk
from inference_service.engine.sequence import Sequence, SequenceId
from inference_service.engine_protocol.messages import ImageSpan, TokenLogprobs
from inference_service.families.positions import POSITION_RULES
from inference_service.kernels.attention import AttentionMetadata
from inference_service.models.batch import ForwardBatch, KVCache
from inference_service.models.vision_language import VisionLanguageModel


PROMPT_LOGITS_ROWS = 256
"""Rows of a prompt whose logits exist at one time: at a vocabulary of 150,000, 256 rows are 150 MB."""


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """What came out of one chunk.

    Attributes:
        token_id: The next token, if the chunk samples one.
        logprobs: Its log probabilities, if asked for.
        prompt_logprobs: Of the prompt tokens that follow the chunk's tokens, if asked for and not reported yet.
    """

    token_id: int | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class _Prompt:
    """What a request's tokens do not say, for all its choices.

    Positions [3, prompt tokens], their offset behind the prompt, pixels.
    """

    positions: np.ndarray
    delta: int
    pixels: memoryview


class ModelRunner:
    """Runs the model over a paged cache."""

    def __init__(
        self,
        model: VisionLanguageModel,
        kv_cache: KVCache,
        encoder_cache: EncoderCache[Tensor],
        *,
        page_size: int,
    ) -> None:
        self._model = model
        self._kv_cache = kv_cache
        self._encoder_cache = encoder_cache
        self._page_size = page_size
        self._device = model.device
        self._prompts: dict[SequenceId, _Prompt] = {}

    def add(self, sequences: Seq[Sequence], pixels: memoryview) -> None:
        """Prepare the sequences of one request; `pixels` is held, not copied, until the last `remove`."""
        spec, request = self._model.spec, sequences[0].request
        positions, delta = POSITION_RULES[spec.position_rule](
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
        """Put the embeddings of images into the encoder cache, all in one pass of the vision tower."""
        embeddings = self._model.encode_images(
            [self._pixels(sequence, image) for sequence, image in images],
            [image.grid for _, image in images],
        )
        for (_, image), embedding in zip(images, embeddings, strict=True):
            # A copy: a part of the pass's one tensor would keep all of it alive.
            self._encoder_cache.fill(image.key, embedding.clone())

    @torch.inference_mode()
    def run(self, chunks: Seq[Chunk]) -> list[ChunkResult]:
        """Compute the chunks in one forward pass and sample where a chunk ends with its sequence."""
        hidden = self._model.forward(self._batch(chunks), self._kv_cache)
        ends = np.cumsum([chunk.end - chunk.start for chunk in chunks]).tolist()
        last_rows = [end - 1 for end, chunk in zip(ends, chunks, strict=True) if chunk.samples]
        sampled = iter(self._sample(hidden, last_rows, [c.sequence for c in chunks if c.samples]))
        results = []
        for chunk, end in zip(chunks, ends, strict=True):
            token_id, logprobs = next(sampled) if chunk.samples else (None, None)
            rows = hidden[end - (chunk.end - chunk.start) : end]
            results.append(ChunkResult(token_id, logprobs, self._prompt_logprobs(rows, chunk)))
        return results

    def _batch(self, chunks: Seq[Chunk]) -> ForwardBatch:
        token_ids = [
            token for chunk in chunks for token in chunk.sequence.token_ids[chunk.start : chunk.end]
        ]
        positions = [self._positions(chunk) for chunk in chunks]
        rows, embeddings = self._image_rows(chunks)
        return ForwardBatch(
            token_ids=self._tensor(token_ids),
            positions=self._tensor(np.concatenate(positions, axis=1)),
            attention=self._attention(chunks),
            image_rows=self._tensor(rows) if rows else None,
            image_embeddings=torch.cat(embeddings) if embeddings else None,
            rope_levels=self._rope_levels(chunks),
        )

    def _rope_levels(self, chunks: Seq[Chunk]) -> Tensor | None:
        if self._model.spec.decoder.rope.ntk is None:
            return None
        levels = [chunk.sequence.rope_level for chunk in chunks]
        return self._tensor(np.repeat(levels, [chunk.end - chunk.start for chunk in chunks]))

    def _positions(self, chunk: Chunk) -> np.ndarray:
        """M-RoPE positions [3, tokens of the chunk]; behind the prompt all axes go on together."""
        prompt = self._prompts[chunk.sequence.sequence_id]
        known = prompt.positions[:, chunk.start : chunk.end]
        first = chunk.start + known.shape[1]
        further = np.arange(first, chunk.end, dtype=np.int64) + prompt.delta
        return np.concatenate([known, np.broadcast_to(further, (3, len(further)))], axis=1)

    def _attention(self, chunks: Seq[Chunk]) -> AttentionMetadata:
        width = max(len(chunk.sequence.pages) for chunk in chunks)
        page_table = np.zeros((len(chunks), width), dtype=np.int64)
        slots = []
        for row, chunk in zip(page_table, chunks, strict=True):
            pages = chunk.sequence.pages
            row[: len(pages)] = pages
            index = np.arange(chunk.start, chunk.end)
            slots.append(row[index // self._page_size] * self._page_size + index % self._page_size)
        lengths = [chunk.end - chunk.start for chunk in chunks]
        return AttentionMetadata(
            slot_mapping=self._tensor(np.concatenate(slots)),
            page_table=self._tensor(page_table),
            query_start=np.cumsum([0, *lengths]).tolist(),
            context_lens=[chunk.end for chunk in chunks],
        )

    def _image_rows(self, chunks: Seq[Chunk]) -> tuple[list[int], list[Tensor]]:
        """Rows of the batch that are image tokens, and the parts of the embeddings that belong there."""
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
        self, hidden: Tensor, last_rows: list[int], sequences: list[Sequence]
    ) -> list[tuple[int, TokenLogprobs | None]]:
        """The next token of each sequence and, if asked for, its log probabilities."""
        if not sequences:
            return []
        logits = self._model.logits(hidden[self._tensor(last_rows)])
        rows = [
            SamplingRow(
                sequence.sampling,
                sequence.request.prompt_token_ids,
                sequence.token_ids[sequence.num_prompt_tokens :],
                sequence.choice_index,
            )
            for sequence in sequences
        ]
        token_ids: list[int] = sample(logits, rows).tolist()
        wanted = [index for index, row in enumerate(rows) if row.params.logprobs is not None]
        logprobs: list[TokenLogprobs | None] = [None] * len(rows)
        if wanted:
            found = token_logprobs(
                logits[self._tensor(wanted)],
                [token_ids[index] for index in wanted],
                [rows[index].params.logprobs or 0 for index in wanted],
            )
            for index, entry in zip(wanted, found, strict=True):
                logprobs[index] = entry
        return list(zip(token_ids, logprobs, strict=True))

    def _prompt_logprobs(self, hidden: Tensor, chunk: Chunk) -> tuple[TokenLogprobs, ...]:
        """Of the prompt tokens behind each row of the chunk, leaving out those reported before a preemption."""
        sequence = chunk.sequence
        num_top = sequence.top_prompt_logprobs
        if num_top is None:
            return ()
        first = max(chunk.start, sequence.num_prompt_logprobs)
        last = min(chunk.end, sequence.num_prompt_tokens - 1)
        entries: list[TokenLogprobs] = []
        for start in range(first, last, PROMPT_LOGITS_ROWS):
            end = min(start + PROMPT_LOGITS_ROWS, last)
            logits = self._model.logits(hidden[start - chunk.start : end - chunk.start])
            targets = sequence.token_ids[start + 1 : end + 1]
            entries += token_logprobs(logits, targets, [num_top] * len(targets))
        return tuple(entries)

    def _tensor(self, values: Iterable[int] | np.ndarray) -> Tensor:
        array = np.asarray(values, dtype=np.int64)
        return torch.from_numpy(array).to(self._device)
