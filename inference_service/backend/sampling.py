"""Which sampling settings are in force: the request's, the operator's, the model's, then OpenAI's."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import secrets

from inference_service.domain import Request, TextCompletionRequest
from inference_service.engine_protocol.messages import SamplingParams
from inference_service.errors import ContextLengthError, InvalidArgumentError
from inference_service.sampling import Sampling, SamplingOptions


_TEXT_COMPLETION_TOKENS = 16  # OpenAI's


def effective_options(
    request: Request,
    defaults: SamplingOptions,
    *,
    prompt_tokens: int,
    max_model_len: int,
) -> Sampling:
    """All settings in force.

    Args:
        request: What the caller said.
        defaults: What the operator and the model say; `max_tokens` gives way to the context window.
        prompt_tokens: Length of the prompt.
        max_model_len: The context window in tokens.

    Raises:
        ContextLengthError: Prompt and answer do not fit the context window.
    """
    said = request.sampling.over(defaults)
    max_tokens = _answer_room(
        request, prompt_tokens, max_model_len, default=_answer_tokens(request, defaults)
    )
    seed = secrets.randbits(63) if said.seed is None else said.seed
    top_k = max(0, said.top_k or 0)  # one way to say off
    return dataclasses.replace(said, max_tokens=max_tokens, seed=seed, top_k=top_k).resolved()


def check_token_ids(request: Request, vocab_size: int) -> None:
    """Refuses ids that the model's vocabulary does not have.

    Raises:
        InvalidArgumentError: `field` names where.
    """
    named: dict[str, Sequence[int]] = {
        "spec.sampling.logit_bias": [token_id for token_id, _ in request.sampling.logit_bias or ()],
        "spec.stop.token_ids": request.stop_token_ids,
    }
    if isinstance(request, TextCompletionRequest) and not isinstance(request.prompt, str):
        named["spec.token_ids"] = request.prompt
    for field, token_ids in named.items():
        highest = max(token_ids, default=0)
        if highest >= vocab_size:
            raise InvalidArgumentError(
                f"Token id {highest} is outside the model's vocabulary of {vocab_size}.",
                field=field,
            )


def _answer_tokens(request: Request, defaults: SamplingOptions) -> int | None:
    """The longest answer where the request names none; None = as long as there is room."""
    if defaults.max_tokens is None and isinstance(request, TextCompletionRequest):
        return _TEXT_COMPLETION_TOKENS
    return defaults.max_tokens


def _answer_room(
    request: Request, prompt_tokens: int, max_model_len: int, *, default: int | None
) -> int:
    asked = request.sampling.max_tokens
    room = max_model_len - prompt_tokens
    metadata = {"prompt_tokens": str(prompt_tokens), "max_context_tokens": str(max_model_len)}
    if room < 1:
        raise ContextLengthError(
            f"The prompt has {prompt_tokens} tokens; the context window of {max_model_len} tokens leaves no room "
            "for an answer.",
            field=request.prompt_field,
            metadata=metadata,
        )
    if asked is None:
        return min(room, default or room)
    if asked > room:
        raise ContextLengthError(
            f"max_tokens is {asked}, but after a prompt of {prompt_tokens} tokens the context window of "
            f"{max_model_len} tokens has room for {room}.",
            field="spec.sampling.max_tokens",
            metadata=metadata | {"max_tokens": str(asked)},
        )
    return asked


def engine_params(
    options: Sampling,
    request: Request,
    *,
    eos_token_ids: tuple[int, ...],
) -> SamplingParams:
    """The settings of a request's answers for the engine.

    Args:
        options: The settings in force.
        request: What the caller said about stops and log probabilities.
        eos_token_ids: The model's end tokens.
    """
    return SamplingParams(
        **dataclasses.asdict(options),
        logprobs=request.top_logprobs,
        prompt_logprobs=request.prompt_logprobs,
        eos_token_ids=eos_token_ids,
        stop_token_ids=request.stop_token_ids,
    )
