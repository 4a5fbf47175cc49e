"""Which sampling settings are in force: the request's, the operator's, the model's, then OpenAI's.

Owns the order of defaults and the room that a prompt leaves in the context.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import secrets
from typing import TypeVar

from inference_service.backend.defaults import SamplingDefaults
from inference_service.domain import RawRequest, Request, SamplingOptions
from inference_service.engine_protocol.messages import SamplingParams
from inference_service.errors import ContextLengthError, InvalidArgumentError


_T = TypeVar("_T")
_RAW_ANSWER_TOKENS = 16  # OpenAI's


def _first(*values: _T | None, last: _T) -> _T:
    """The first value that is set."""
    return next((value for value in values if value is not None), last)


def effective_options(
    request: Request,
    defaults: SamplingDefaults,
    *,
    prompt_tokens: int,
    max_model_len: int,
) -> SamplingOptions:
    """All settings in force; every field of the result is set.

    Args:
        request: What the caller said.
        defaults: What the operator and the model say; `max_tokens` gives way to the context window.
        prompt_tokens: Length of the prompt.
        max_model_len: The context window in tokens.

    Raises:
        ContextLengthError: Prompt and answer do not fit the context window.
    """
    asked = request.sampling
    top_k = _first(asked.top_k, defaults.top_k, last=0)
    return SamplingOptions(
        temperature=_first(asked.temperature, defaults.temperature, last=1.0),
        top_p=_first(asked.top_p, defaults.top_p, last=1.0),
        top_k=max(0, top_k),
        min_p=_first(asked.min_p, defaults.min_p, last=0.0),
        repetition_penalty=_first(asked.repetition_penalty, defaults.repetition_penalty, last=1.0),
        presence_penalty=_first(asked.presence_penalty, defaults.presence_penalty, last=0.0),
        frequency_penalty=_first(asked.frequency_penalty, defaults.frequency_penalty, last=0.0),
        seed=_first(asked.seed, last=secrets.randbits(63)),
        max_tokens=_answer_room(
            request, prompt_tokens, max_model_len, default=_answer_tokens(request, defaults)
        ),
        min_tokens=_first(asked.min_tokens, last=0),
        ignore_eos=_first(asked.ignore_eos, last=False),
        logit_bias=asked.logit_bias,
    )


def check_token_ids(request: Request, vocab_size: int) -> None:
    """Refuses ids that the model's vocabulary does not have.

    Raises:
        InvalidArgumentError: `field` names where.
    """
    named: dict[str, Sequence[int]] = {
        "spec.sampling.logit_bias": [token_id for token_id, _ in request.sampling.logit_bias],
        "spec.stop.token_ids": request.stop_token_ids,
    }
    if isinstance(request, RawRequest) and not isinstance(request.prompt, str):
        named["spec.token_ids"] = request.prompt
    for field, token_ids in named.items():
        if max(token_ids, default=0) >= vocab_size:
            raise InvalidArgumentError(
                f"A token id is outside the model's vocabulary of {vocab_size}.", field=field
            )


def _answer_tokens(request: Request, defaults: SamplingDefaults) -> int | None:
    """The longest answer where the request names none; None = as long as there is room."""
    if defaults.max_tokens is None and isinstance(request, RawRequest):
        return _RAW_ANSWER_TOKENS
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
    options: SamplingOptions,
    request: Request,
    *,
    eos_token_ids: tuple[int, ...],
) -> SamplingParams:
    """The settings of a request's answers for the engine.

    Args:
        options: A result of `effective_options`.
        request: What the caller said about stops and log probabilities.
        eos_token_ids: The model's end tokens.
    """
    values = {
        field.name: getattr(options, field.name) for field in dataclasses.fields(SamplingOptions)
    }
    return SamplingParams(
        **values,
        logprobs=request.top_logprobs,
        prompt_logprobs=request.prompt_logprobs,
        eos_token_ids=eos_token_ids,
        stop_token_ids=request.stop_token_ids,
    )
