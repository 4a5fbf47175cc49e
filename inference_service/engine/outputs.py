"""The outputs of the engine: of a step, and of a sequence that ends without a further token."""

from __future__ import annotations

from inference_service.engine.sequence import Sequence
from inference_service.engine.step_results import ChunkResult
from inference_service.engine_protocol.messages import ChoiceOutput, EngineFailure, FinishReason
from inference_service.measures import ChoiceTimings


def token_output(
    sequence: Sequence,
    result: ChunkResult,
    num_cached_tokens: int | None,
    timings: ChoiceTimings | None,
) -> ChoiceOutput:
    """The output for a committed result; with timings it is the first one behind the prompt."""
    return ChoiceOutput(
        request_id=sequence.request.request_id,
        choice_index=sequence.choice_index,
        token_ids=() if result.token_id is None else (result.token_id,),
        logprobs=() if result.logprobs is None else (result.logprobs,),
        prompt_logprobs=result.prompt_logprobs,
        num_cached_tokens=num_cached_tokens,
        num_cache_write_tokens=0 if timings is None else sequence.num_cache_write_tokens,
        timings=timings,
        probe=result.probe,
        finish_reason=sequence.finish_reason,
    )


def ended_output(
    sequence: Sequence, reason: FinishReason, failure: EngineFailure | None
) -> ChoiceOutput:
    """The last output of a sequence that ends without a further token."""
    return ChoiceOutput(
        request_id=sequence.request.request_id,
        choice_index=sequence.choice_index,
        num_cached_tokens=unreported_cached_tokens(sequence),
        finish_reason=reason,
        failure=failure,
    )


def unreported_cached_tokens(sequence: Sequence) -> int | None:
    """The number of cached tokens for the first output of a sequence; None for the later ones."""
    reported = sequence.num_answer_tokens > 0 or sequence.num_prompt_logprobs > 0
    return None if reported else sequence.num_cached_tokens
