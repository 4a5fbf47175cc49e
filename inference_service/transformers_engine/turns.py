"""Samples the next token of the sequence whose turn it is, with the engine's own sampler."""

from __future__ import annotations

from heapq import heappop, heappush

import torch
from torch import Tensor

from inference_service.engine.plan import Chunk
from inference_service.engine.sequence import Sequence
from inference_service.engine.slots import Slots
from inference_service.engine.step_results import ChunkResult
from inference_service.engine.step_sampler import StepSampler
from inference_service.engine_protocol.messages import ProbeResult
from inference_service.kernels.ops import REFERENCE
from inference_service.kernels.slot_state import StateUpdate


class TurnSampler:
    """The slots of the running sequences, and a sampler for one of them at a time."""

    def __init__(
        self, *, max_seqs: int, max_len: int, vocab_size: int, device: torch.device
    ) -> None:
        self._device = device
        self._slots = Slots(
            max_seqs, max_pages=1, max_len=max_len, vocab_size=vocab_size, device=device
        )
        self._sampler = StepSampler(self._slots, REFERENCE, max_seqs=1, vocab_size=vocab_size)
        self._free = list(range(max_seqs))

    def begin(self, sequence: Sequence) -> None:
        """Gives a sequence a slot."""
        sequence.slot = heappop(self._free)

    def end(self, sequence: Sequence) -> None:
        """Takes its slot back."""
        self._slots.forget([sequence])
        heappush(self._free, sequence.slot)

    def choose(self, sequence: Sequence, logits: Tensor) -> ChunkResult:
        """The next token or the result of a probe, from its logits [1, V] float32, which are undefined afterwards."""
        chunk = Chunk(sequence, len(sequence) - 1, len(sequence), samples=True)
        update = self._slots.admit([sequence])
        plan = self._sampler.plan([chunk], [0])
        changes = StateUpdate(*(torch.from_numpy(array).to(self._device) for array in update))
        REFERENCE.update_slots(self._slots.state, changes)
        sent = [torch.from_numpy(array).to(self._device) for array in plan.arrays]
        sampled = self._sampler.run(plan, sent, logits)
        token_id = int(sampled.token_ids[0])
        if sequence.probe is not None:
            assert sampled.candidates is not None
            values = tuple(sampled.candidates.tolist())
            return ChunkResult(probe=ProbeResult(logprobs=values, top_id=token_id))
        logprobs = None if sampled.logprobs is None else sampled.logprobs.read()[0]
        return ChunkResult(token_id=token_id, logprobs=logprobs)
