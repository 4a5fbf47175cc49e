"""The log probabilities of a prompt, of which the library's models compute all logits at once."""

from __future__ import annotations

import torch

from inference_service.engine.logprobs import token_logprobs
from inference_service.engine.prompt_logprobs import PROMPT_LOGITS_ROWS
from inference_service.engine.sequence import Sequence
from inference_service.engine_protocol.messages import PositionLogprobs
from inference_service.errors import InternalError
from inference_service.transformers_engine.generation import Generation


def prompt_logprobs(sequence: Sequence, generation: Generation) -> tuple[PositionLogprobs, ...]:
    """Log probabilities of the prompt's tokens from the second on, once."""
    logits, generation.prompt_logits = generation.prompt_logits, None
    if logits is None:
        return ()
    targets = sequence.token_ids[1 : sequence.num_prompt_tokens]
    if len(logits) != sequence.num_prompt_tokens:
        raise InternalError("The model has no logits for each token of the prompt.")
    found: list[PositionLogprobs] = []
    for start in range(0, len(targets), PROMPT_LOGITS_ROWS):
        some = torch.tensor(targets[start : start + PROMPT_LOGITS_ROWS], device=logits.device)
        rows = logits[start : start + len(some)]
        found += token_logprobs(rows, some, [sequence.top_prompt_logprobs or 0] * len(some)).read()
    return tuple(found)
