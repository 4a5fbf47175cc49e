"""Runs a model over a paged cache the way an engine does, for tests of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from inference_service.engine_protocol.messages import ImageSpan
from inference_service.families.qwen_common.positions import mrope_positions
from inference_service.models.batch import ForwardBatch
from inference_service.models.vision_language import VisionLanguageModel
from tests.support.attention_metadata import attention_metadata
from tests.support.tiny_qwen_vl import Seen, frames_of, grid_of


@dataclass
class Running:
    """A prompt, its images as embeddings, and how much of it is in the cache."""

    ids: list[int]
    positions: np.ndarray
    delta: int
    image_rows: torch.Tensor
    image_embeddings: torch.Tensor
    pages: list[int]
    done: int = 0


class PagedForward:
    """Sequences over one cache; pages are handed out in a scattered order."""

    def __init__(
        self, model: VisionLanguageModel, *, num_pages: int = 256, page_size: int = 4
    ) -> None:
        self.model = model
        self.page_size = page_size
        self.cache = model.new_kv_cache(num_pages, page_size)
        assert isinstance(self.cache, torch.Tensor)
        self.cache.fill_(7.0)  # what an earlier sequence may have left
        self._free = np.random.default_rng(0).permutation(num_pages).tolist()

    def add(
        self, ids: Sequence[int], spans: Sequence[ImageSpan], images: Sequence[Seen]
    ) -> Running:
        """Encodes the images of a new sequence; nothing of it is in the cache yet."""
        positions, delta = mrope_positions(len(ids), spans, self.model.spec.image_policy.merge_size)
        rows, embeddings = torch.empty(0, dtype=torch.int64), torch.empty(0)
        if images:
            with torch.inference_mode():
                encoded = self.model.encode_images(
                    [torch.from_numpy(frames_of(p)) for p in images],
                    [grid_of(p) for p in images],
                )
            embeddings = torch.cat(encoded)
            rows = torch.cat([torch.arange(s.start, s.start + s.num_tokens) for s in spans])
        return Running(list(ids), positions, delta, rows, embeddings, [])

    def step(self, work: Sequence[tuple[Running, int]]) -> list[torch.Tensor]:
        """Computes the next tokens of some sequences, in one batch; logits [tokens, vocab] of each."""
        for sequence, tokens in work:
            while len(sequence.pages) * self.page_size < sequence.done + tokens:
                sequence.pages.append(self._free.pop())
        batch = self._batch(work)
        with torch.inference_mode():
            logits = self.model.logits(self.model(batch, self.cache))
        for sequence, tokens in work:
            sequence.done += tokens
        return list(logits.split([tokens for _, tokens in work]))

    def logits(
        self, ids: Sequence[int], spans: Sequence[ImageSpan], images: Sequence[Seen]
    ) -> torch.Tensor:
        """[T, vocab] of one sequence, computed at once."""
        return self.step([(self.add(ids, spans, images), len(ids))])[0]

    def _batch(self, work: Sequence[tuple[Running, int]]) -> ForwardBatch:
        ids: list[int] = []
        positions, slots, rows, embeddings = [], [], [], []
        query_start, contexts = [0], []
        table = torch.zeros(len(work), max(len(s.pages) for s, _ in work), dtype=torch.int64)
        for i, (sequence, tokens) in enumerate(work):
            first, last = sequence.done, sequence.done + tokens
            index = np.arange(first, last)
            here = np.tile(index + sequence.delta, (3, 1))
            known = index < sequence.positions.shape[1]
            here[:, known] = sequence.positions[:, index[known]]
            positions.append(torch.from_numpy(here))
            pages = torch.tensor(sequence.pages)
            table[i, : len(pages)] = pages
            at = torch.from_numpy(index)
            slots.append(pages[at // self.page_size] * self.page_size + at % self.page_size)
            inside = (sequence.image_rows >= first) & (sequence.image_rows < last)
            rows.append(sequence.image_rows[inside] - first + len(ids))
            if inside.any():
                embeddings.append(sequence.image_embeddings[inside])
            ids += sequence.ids[first:last]
            query_start.append(len(ids))
            contexts.append(last)
        return ForwardBatch(
            token_ids=torch.tensor(ids),
            positions=torch.cat(positions, dim=1),
            attention=attention_metadata(torch.cat(slots), table, query_start, contexts),
            image_rows=torch.cat(rows) if embeddings else None,
            image_embeddings=torch.cat(embeddings) if embeddings else None,
        )
