"""Log probabilities of prompt tokens: which are due after a chunk, and their computation in parts."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
from torch import Tensor

from inference_service.engine.logprobs import LogprobTensors, token_logprobs
from inference_service.engine.plan import Chunk
from inference_service.engine.staging import Array
from inference_service.models.vision_language import VisionLanguageModel


PROMPT_LOGITS_ROWS = 256
"""Maximum rows of prompt logits in memory at once: with a vocabulary of 150,000, 256 rows are 150 MB."""


def due(chunk: Chunk) -> tuple[int, int]:
    """The range of tokens after which a prompt token's log probabilities are due, without those reported already."""
    sequence = chunk.sequence
    if sequence.top_prompt_logprobs is None:
        return chunk.start, chunk.start
    first = max(chunk.start, sequence.num_prompt_logprobs)
    return first, min(chunk.end, sequence.num_prompt_tokens - 1)


def targets_of(chunk: Chunk) -> list[Array]:
    """The prompt tokens that are due after a chunk, in parts of limited size."""
    first, last = due(chunk)
    token_ids = chunk.sequence.token_ids
    return [
        np.array(token_ids[start + 1 : min(start + PROMPT_LOGITS_ROWS, last) + 1], np.int64)
        for start in range(first, last, PROMPT_LOGITS_ROWS)
    ]


def prompt_logprobs(
    model: VisionLanguageModel, hidden: Tensor, chunk: Chunk, targets: Seq[Tensor]
) -> list[LogprobTensors]:
    """Enqueue the log probabilities of the prompt tokens that are due after a chunk.

    Args:
        model: The model.
        hidden: [tokens of the chunk, hidden size].
        chunk: The chunk.
        targets: Those of `targets_of`, on the device.
    """
    first, _ = due(chunk)
    top = chunk.sequence.top_prompt_logprobs or 0
    parts = []
    row = first - chunk.start
    for part in targets:
        logits = model.logits(hidden[row : row + len(part)])
        parts.append(token_logprobs(logits, part, [top] * len(part)).to_host())
        row += len(part)
    return parts
