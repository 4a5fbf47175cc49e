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
from inference_service.engine.row_settings import RowSettings
from inference_service.engine.sampler import sample_
from inference_service.engine.sampling_table import SampledRow, Selection, Shape
from inference_service.engine.sequence import Sequence
from inference_service.engine.slots import Slots
from inference_service.engine.staging import Array
from inference_service.kernels.ops import Ops
from inference_service.kernels.slot_state import SampledRows


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked about the R rows of logits of a step, beside their tokens.

    Attributes:
        arrays: The four arrays to be sent, for `StepSampler.answers`.
        num_top: Number of most likely tokens, for each row whose log probabilities are requested.
    """

    arrays: list[Array]
    num_top: list[int]

    @property
    def any(self) -> bool:
        """Whether anything is asked."""
        return any(map(len, self.arrays))


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """What is known on the host of the R rows of logits of a step.

    Attributes:
        arrays: The arrays to be sent, for `StepSampler.run`.
        shape: The shape of the selection.
        masked: The sequences of which only some tokens are permitted next.
        questions: What is asked beside the tokens.
        is_greedy: The most likely tokens are the result, and nothing else is asked for.
    """

    arrays: list[Array]
    shape: Shape
    masked: list[Sequence]
    questions: Questions
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
        questions = self.questions(chunks)
        rows = [np.array(last_rows, np.int64), np.array(masked, np.int64)]
        changed = (selection.drawn_rows, selection.penalty_rows, selection.bias_rows)
        return SamplingPlan(
            [*rows, *questions.arrays, *recorded, *selection.arrays],
            shape,
            [sequences[i] for i in masked],
            questions,
            is_greedy=not (masked or questions.any or any(map(len, changed))),
        )

    def questions(self, chunks: Seq[Chunk]) -> Questions:
        """What is asked about the rows of the chunks that sample."""
        sequences = [chunk.sequence for chunk in chunks]
        judged = [i for i, one in enumerate(sequences) if one.probe is not None]
        probes = [one.probe for one in sequences if one.probe is not None]
        reported = [i for i, one in enumerate(sequences) if _reports(one)]
        candidates = [len(probe.candidate_ids) for probe in probes]
        arrays: list[Array] = [
            np.array(reported, np.int64),
            np.array(judged, np.int64),
            np.repeat(np.arange(len(judged)), candidates),
            np.array([i for probe in probes for i in probe.candidate_ids], np.int64),
        ]
        return Questions(arrays, [sequences[i].sampling.logprobs or 0 for i in reported])

    def whole(self, chunks: Seq[Chunk]) -> RowSettings | None:
        """The settings of all rows of a captured step, which also chooses their tokens; None if a row needs more."""
        if any(chunk.sequence.has_mask for chunk in chunks):
            return None
        return self._slots.whole([_sampled_row(chunk) for chunk in chunks])

    def run(self, plan: SamplingPlan, sent: Seq[Tensor], logits: Tensor) -> Sampled:
        """Chooses the tokens.

        Args:
            plan: The plan.
            sent: Its arrays on the device.
            logits: [R, V] float32; undefined afterwards.
        """
        _, mask_rows, *others = sent
        # Before the sampler overwrites them.
        asked = _Asked(plan.questions, others[:4], logits)
        recorded, selection = SampledRows(*others[4:9]), Selection(*others[9:])
        mask = None
        if plan.masked:  # a GPU computes the forward pass meanwhile
            mask = self._masks.fill(plan.masked, mask_rows, self._vocab_size, logits.device)
        state = self._slots.state
        token_ids = sample_(logits, selection, plan.shape, state, mask, ops=self._ops)
        self._ops.record_tokens(state, token_ids, recorded)
        return asked.about(token_ids)

    def answers(
        self, questions: Questions, sent: Seq[Tensor], logits: Tensor, token_ids: Tensor
    ) -> Sampled:
        """The results of tokens that a captured step has chosen, and recorded.

        Args:
            questions: What is asked.
            sent: Its arrays on the device.
            logits: [R, V] float32.
            token_ids: [R] int64.
        """
        return _Asked(questions, sent, logits).about(token_ids)


class _Asked:
    """What is asked about logits, taken from them."""

    def __init__(self, questions: Questions, sent: Seq[Tensor], logits: Tensor) -> None:
        self._reported, judged, candidate_rows, candidate_ids = sent
        self._num_top = questions.num_top
        self._raw = logits.index_select(0, self._reported) if len(self._reported) else None
        self._candidates = None
        if len(judged):
            of_probes = logits.index_select(0, judged)
            self._candidates = candidate_logprobs(of_probes, candidate_rows, candidate_ids)

    def about(self, token_ids: Tensor) -> Sampled:
        """All results, for the tokens [R] int64 that were chosen."""
        logprobs = None
        if self._raw is not None:
            chosen = token_ids.index_select(0, self._reported)
            logprobs = token_logprobs(self._raw, chosen, self._num_top)
        return Sampled(token_ids, self._candidates, logprobs)


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
