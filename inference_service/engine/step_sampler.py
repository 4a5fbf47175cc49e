"""Samples the next tokens of a step's sequences.

Rows and settings are selected on the host before the forward pass, so that they travel with its inputs; the tokens are
chosen on the device behind it.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from inference_service.engine.logprobs import LogprobTensors, candidate_logprobs, token_logprobs
from inference_service.engine.masks import MaskBuffers
from inference_service.engine.plan import Chunk
from inference_service.engine.sampler import sample_
from inference_service.engine.sampling_table import SampledRow, Selection, Shape
from inference_service.engine.sequence import Sequence
from inference_service.engine.slots import Slots
from inference_service.engine.staging import Array
from inference_service.kernels.ops import Ops
from inference_service.kernels.slot_state import SampledRows


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """What is known on the host of the R rows of logits of a step.

    Attributes:
        arrays: The arrays to be sent, for `StepSampler.run`.
        shape: The shape of the selection.
        masked: The sequences of which only some tokens are permitted next.
        num_top: Number of most likely tokens, for each row whose log probabilities are requested.
        is_greedy: The most likely tokens are the result, and nothing else is asked for.
    """

    arrays: list[Array]
    shape: Shape
    masked: list[Sequence]
    num_top: list[int]
    is_greedy: bool


@dataclass(frozen=True, slots=True)
class Sampled:
    """The results of R rows, on the device.

    Attributes:
        token_ids: [R] int64; for a probe the most likely one.
        candidates: [N] float32: log probabilities of the candidates of all probes, in order; None without probes.
        logprobs: Log probabilities of those of the R tokens for which they are requested.
    """

    token_ids: Tensor
    candidates: Tensor | None
    logprobs: LogprobTensors | None


class StepSampler:
    """Samples a step's next tokens, and records them in the slots."""

    def __init__(self, slots: Slots, ops: Ops, *, max_seqs: int, vocab_size: int) -> None:
        self._slots = slots
        self._ops = ops
        self._vocab_size = vocab_size
        self._masks = MaskBuffers(max_seqs)

    def plan(self, chunks: Seq[Chunk], last_rows: Seq[int]) -> SamplingPlan:
        """Chooses rows and settings.

        Args:
            chunks: The R chunks that sample; their sequences are admitted to the slots.
            last_rows: The last row of each in the batch.
        """
        sequences = [chunk.sequence for chunk in chunks]
        selection, shape, recorded = self._slots.select([_sampled_row(chunk) for chunk in chunks])
        masked = [i for i, one in enumerate(sequences) if one.has_mask]
        judged = [i for i, one in enumerate(sequences) if one.probe is not None]
        probes = [one.probe for one in sequences if one.probe is not None]
        reported = [i for i, one in enumerate(sequences) if _reports(one)]
        candidates = [len(probe.candidate_ids) for probe in probes]
        rows = [
            np.array(last_rows, np.int64),
            np.array(masked, np.int64),
            np.array(reported, np.int64),
            np.array(judged, np.int64),
            np.repeat(np.arange(len(judged)), candidates),
            np.array([i for probe in probes for i in probe.candidate_ids], np.int64),
        ]
        changed = (selection.drawn_rows, selection.penalty_rows, selection.bias_rows)
        return SamplingPlan(
            [*rows, *recorded, *selection.arrays],
            shape,
            [sequences[i] for i in masked],
            [sequences[i].sampling.logprobs or 0 for i in reported],
            is_greedy=not (masked or reported or judged or any(map(len, changed))),
        )

    def run(self, plan: SamplingPlan, sent: Seq[Tensor], logits: Tensor) -> Sampled:
        """Chooses the tokens.

        Args:
            plan: The plan.
            sent: Its arrays on the device.
            logits: [R, V] float32; undefined afterwards.
        """
        _, mask_rows, reported, judged, candidate_rows, candidate_ids, *others = sent
        recorded, selection = SampledRows(*others[:5]), Selection(*others[5:])
        # Before the sampler overwrites them.
        raw = logits.index_select(0, reported) if len(reported) else None
        candidates = None
        if len(judged):
            of_probes = logits.index_select(0, judged)
            candidates = candidate_logprobs(of_probes, candidate_rows, candidate_ids)
        mask = None
        if plan.masked:  # a GPU computes the forward pass meanwhile
            mask = self._masks.fill(plan.masked, mask_rows, self._vocab_size, logits.device)
        state = self._slots.state
        token_ids = sample_(logits, selection, plan.shape, state, mask, ops=self._ops)
        self._ops.record_tokens(state, token_ids, recorded)
        logprobs = None
        if raw is not None:
            chosen = token_ids.index_select(0, reported)
            logprobs = token_logprobs(raw, chosen, plan.num_top)
        return Sampled(token_ids, candidates, logprobs)


def _sampled_row(chunk: Chunk) -> SampledRow:
    sequence = chunk.sequence
    return SampledRow(
        sequence.slot,
        chunk.end - sequence.num_prompt_tokens,
        is_masked=sequence.is_masked,
        awaits_mask=sequence.awaits_mask,
        excluded=sequence.completes_bad_words,
    )


def _reports(sequence: Sequence) -> bool:
    """Whether log probabilities of its tokens are requested."""
    return sequence.sampling.logprobs is not None and sequence.probe is None
