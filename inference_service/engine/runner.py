"""Runs one step on the device: computes scheduled chunks and samples tokens.

`launch` enqueues the work of a step, `collect` waits for its results, if there are any: a step that only computes
chunks of prompts may still be running afterwards. On a CPU, the work is done when `launch` returns.

Everything that a step needs from the host travels in one copy before its forward pass, but for the masks of
constraints, which are filled during it.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from inference_service.engine.encoder_cache import EncoderCache
from inference_service.engine.graphs import DecodeGraph, DecodeGraphs, Surroundings
from inference_service.engine.inputs import UNKNOWN, SequenceInput, batch_of, pack
from inference_service.engine.logprobs import LogprobTensors
from inference_service.engine.pixels import own, send_pixels
from inference_service.engine.plan import Chunk
from inference_service.engine.prompt_logprobs import due, prompt_logprobs, targets_of
from inference_service.engine.sequence import Sequence, SequenceId
from inference_service.engine.slots import Slots
from inference_service.engine.staging import Array, Staging
from inference_service.engine.step_results import ChunkResult, Launched
from inference_service.engine.step_sampler import Sampled, StepSampler
from inference_service.engine_protocol.messages import ImageSpan
from inference_service.families.registry import family_of
from inference_service.kernels.pieces import Pieces
from inference_service.kernels.slot_state import StateUpdate
from inference_service.models.batch import KVCache
from inference_service.models.vision_language import VisionLanguageModel


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
    """Runs the model with a paged KV cache.

    Attributes:
        graphs: Decode steps that run as one; empty at first.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        kv_cache: KVCache,
        encoder_cache: EncoderCache[Tensor],
        *,
        page_size: int,
        max_num_seqs: int,
        max_model_len: int,
        padding_page: int | None = None,
    ) -> None:
        """Allocates the state of the sequences.

        Args:
            model: The model.
            kv_cache: Its cache.
            encoder_cache: The embeddings of images.
            page_size: Tokens of a page.
            max_num_seqs: Maximum number of sequences of a step.
            max_model_len: Maximum number of tokens of a sequence.
            padding_page: A page of the cache that no sequence ever has; needed for graphs.
        """
        self._model = model
        self._kv_cache = kv_cache
        self._encoder_cache = encoder_cache
        self._page_size = page_size
        self._with_rope_levels = model.spec.decoder.rope.ntk is not None
        self._staging = Staging(model.device)
        vocab_size = model.spec.decoder.vocab_size
        self._slots = Slots(
            max_num_seqs,
            max_pages=-(-max_model_len // page_size),
            max_len=max_model_len,
            vocab_size=vocab_size,
            device=model.device,
            padding_page=padding_page,
        )
        self._max_num_seqs, self._max_model_len = max_num_seqs, max_model_len
        self._padding_page = padding_page
        self.graphs = DecodeGraphs({})
        self._sampler = StepSampler(
            self._slots, model.ops, max_seqs=max_num_seqs, vocab_size=vocab_size
        )
        self._prompts: dict[SequenceId, _Prompt] = {}

    def surroundings(self, rows: int) -> Surroundings:
        """What steps of at most so many rows share, with new tensors for their results."""
        assert self._padding_page is not None, "graphs need a page for padding"
        device, vocab_size = self._model.device, self._model.spec.decoder.vocab_size
        return Surroundings(
            model=self._model,
            kv_cache=self._kv_cache,
            state=self._slots.state,
            page_size=self._page_size,
            max_model_len=self._max_model_len,
            padding=SequenceInput((0,), 0, (self._padding_page,), self._max_num_seqs),
            logits=torch.empty(rows, vocab_size, dtype=torch.float32, device=device),
            token_ids=torch.empty(rows, dtype=torch.int64, device=device),
        )

    def add(self, sequences: Seq[Sequence], pixels: memoryview) -> None:
        """Prepare the sequences of one request, all or (if this raises) none.

        `pixels` is kept, not copied, until the last `remove` and the end of the encoding of its images.
        """
        spec, request = self._model.spec, sequences[0].request
        positions, delta = family_of(spec).positions(
            len(request.prompt_token_ids), request.images, spec.image_policy.merge_size
        )
        prompt = _Prompt(positions, delta, pixels)
        for sequence in sequences:
            self._prompts[sequence.sequence_id] = prompt

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence."""
        del self._prompts[sequence.sequence_id]
        self._slots.forget([sequence])

    def distrust(self, chunks: Seq[Chunk]) -> None:
        """Send everything about the sequences of a failed step anew, as it is unknown what the device has computed."""
        self._slots.forget(chunk.sequence for chunk in chunks)

    def pixels(self, sequence: Sequence, image: ImageSpan) -> memoryview:
        """The pixels of an image of a known sequence; not copied."""
        pixels = self._prompts[sequence.sequence_id].pixels
        return pixels[image.pixel_offset : image.pixel_offset + image.pixel_bytes]

    def encode(self, images: Seq[tuple[ImageSpan, memoryview]]) -> Pieces[None]:
        """Enqueue one pass of the vision tower in pieces, then put the images' embeddings into the encoder cache."""
        embeddings = yield from self._model.encoding(
            (
                send_pixels(pixels, image.height, image.width, self._model.device)
                for image, pixels in images
            ),
            [image.grid for image, _ in images],
        )
        for (image, _), embedding in zip(images, embeddings, strict=True):
            self._encoder_cache.fill(image.key, own(embedding))

    @torch.inference_mode()
    def launch(self, chunks: Seq[Chunk]) -> Launched:
        """Enqueue one forward pass over the chunks, and sampling where a chunk ends with its sequence.

        Waits until the inputs of the step before the previous one are on the device, as their buffers are reused.
        """
        graph = self._graph_for(chunks)
        return self._launch(chunks) if graph is None else self._replay(graph, chunks)

    def _launch(self, chunks: Seq[Chunk]) -> Launched:
        """Enqueue every operation of a step by itself."""
        image_rows, parts = self._image_rows(chunks)
        # Before anything is queued, as it may run out of memory.
        embeddings = torch.cat(parts) if parts else None
        outgoing = _Outgoing()
        update = self._slots.admit(chunk.sequence for chunk in chunks)
        packed = pack(
            [self._input(chunk) for chunk in chunks],
            image_rows,
            page_size=self._page_size,
            with_rope_levels=self._with_rope_levels,
        )
        inputs = outgoing.add(packed.arrays)
        starts: list[int] = packed.host_query_start.tolist()
        sampling = [index for index, chunk in enumerate(chunks) if chunk.samples]
        plan = rows = None
        if sampling:
            last_rows = [starts[index + 1] - 1 for index in sampling]
            plan = self._sampler.plan([chunks[index] for index in sampling], last_rows)
            rows = outgoing.add(plan.arrays)
        targets = [outgoing.add(targets_of(chunk)) for chunk in chunks]
        changes = outgoing.add(update)
        sent = self._staging.send(outgoing.arrays)

        state = self._slots.state
        self._model.ops.update_slots(state, StateUpdate(*sent[changes]))
        batch = batch_of(packed, sent[inputs], state, embeddings)
        hidden = self._model.forward(batch, self._kv_cache)
        sampled = None
        if plan is not None and rows is not None:
            logits = self._model.logits(hidden.index_select(0, sent[rows.start]))
            sampled = self._sampler.run(plan, sent[rows], logits)
        of_prompts = {
            index: prompt_logprobs(
                self._model,
                hidden[starts[index] : starts[index + 1]],
                chunk,
                sent[targets[index]],
            )
            for index, chunk in enumerate(chunks)
            if chunk.sequence.top_prompt_logprobs is not None
        }
        return self._launched(chunks, sampled, of_prompts)

    def _graph_for(self, chunks: Seq[Chunk]) -> DecodeGraph | None:
        """The graph for a step, if all of it is a token for each sequence, from which the next one is sampled."""
        if not self.graphs.sizes or not all(map(_is_one_token, chunks)):
            return None
        return self.graphs.fitting(len(chunks))

    def _replay(self, graph: DecodeGraph, chunks: Seq[Chunk]) -> Launched:
        """Enqueue a step as a graph, and behind it the sampling that some row needs and the graph does not have."""
        outgoing = _Outgoing()
        update = self._slots.admit(chunk.sequence for chunk in chunks)
        settings = self._sampler.whole(chunks) if graph.step.samples else None
        inputs = [self._input(chunk) for chunk in chunks]
        words = outgoing.add([graph.step.pack(inputs, settings)])
        if settings is not None:
            questions = self._sampler.questions(chunks)
            rows = outgoing.add(questions.arrays)
        else:
            plan = self._sampler.plan(chunks, range(len(chunks)))
            rows = outgoing.add([] if plan.is_greedy else plan.arrays)
        changes = outgoing.add(update)
        sent = self._staging.send(outgoing.arrays)
        self._model.ops.update_slots(self._slots.state, StateUpdate(*sent[changes]))
        token_ids, logits = graph.run(sent[words.start], len(chunks))
        if settings is not None:
            sampled = self._sampler.answers(questions, sent[rows], logits, token_ids)
        elif plan.is_greedy:
            sampled = Sampled(token_ids, None, None)
        else:
            sampled = self._sampler.run(plan, sent[rows], logits)
        return self._launched(chunks, sampled, {})

    def _launched(
        self,
        chunks: Seq[Chunk],
        sampled: Sampled | None,
        of_prompts: dict[int, list[LogprobTensors]],
    ) -> Launched:
        """Enqueue the copies of the results to the host."""
        return Launched.with_copies(chunks, sampled, of_prompts, self._model.device)

    def collect(self, launched: Launched) -> list[ChunkResult]:
        """Wait for the next tokens and log probabilities of a step, if there are any, and return its results."""
        return launched.read()

    def _input(self, chunk: Chunk) -> SequenceInput:
        sequence = chunk.sequence
        prompt = self._prompts[sequence.sequence_id]
        token_ids = sequence.token_ids[chunk.start : chunk.end]
        return SequenceInput(
            token_ids or _UNKNOWN,
            chunk.start,
            sequence.pages,
            sequence.slot,
            self._positions(chunk),
            prompt.delta,
            sequence.rope_level,
        )

    def _positions(self, chunk: Chunk) -> np.ndarray | None:
        """M-RoPE positions [3, tokens of the prompt in the chunk]; None without such tokens."""
        positions = self._prompts[chunk.sequence.sequence_id].positions
        if chunk.start >= positions.shape[1]:
            return None
        return positions[:, chunk.start : chunk.end]

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


_UNKNOWN = (UNKNOWN,)


class _Outgoing:
    """Arrays that are sent together.

    Attributes:
        arrays: The arrays.
    """

    def __init__(self) -> None:
        self.arrays: list[Array] = []

    def add(self, arrays: Seq[Array]) -> slice:
        """Appends arrays; returns where they are."""
        start = len(self.arrays)
        self.arrays += arrays
        return slice(start, len(self.arrays))


def _is_one_token(chunk: Chunk) -> bool:
    """Whether a chunk is a single token, not of an image, whose only result is what is sampled from it."""
    if chunk.end - chunk.start != 1 or not chunk.samples:
        return False
    first, last = due(chunk)
    return first >= last and not chunk.sequence.images_between(chunk.start, chunk.end)
