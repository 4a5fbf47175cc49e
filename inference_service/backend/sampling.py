"""Resolves the effective sampling settings: the request's, the operator's, the model's, then OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import math
import secrets

from inference_service.backend.token_lists import NO_LISTS, TokenLists
from inference_service.domain import Request, TextCompletionRequest
from inference_service.engine_protocol.messages import SamplingParams
from inference_service.errors import ContextLengthError, InvalidArgumentError
from inference_service.sampling import LISTS, SCALARS, Sampling, SamplingOptions


_TEXT_COMPLETION_TOKENS = 16  # OpenAI's default


def effective_options(
    request: Request,
    defaults: SamplingOptions,
    *,
    prompt_tokens: int,
    max_model_len: int,
    strict_max_tokens: bool = False,
) -> Sampling:
    """The effective settings of a request.

    Args:
        request: The request.
        defaults: Settings of the operator and the model; `max_tokens` is capped by the context window.
        prompt_tokens: Length of the prompt.
        max_model_len: The context window in tokens.
        strict_max_tokens: Refuse a `max_tokens` for which the context window has no room, instead of lowering it.

    Raises:
        ContextLengthError: The prompt fills the context window; or, if strict, `max_tokens` exceeds the rest of it.
    """
    options = request.sampling.over(defaults)
    max_tokens = _answer_room(
        request, prompt_tokens, max_model_len, wanted=wanted_tokens(request, defaults)
    )
    asked = request.sampling.max_tokens
    if asked is not None and asked > max_tokens and strict_max_tokens:
        raise _too_many_tokens(asked, prompt_tokens, max_model_len)
    seed = secrets.randbits(63) if options.seed is None else options.seed
    top_k = max(0, options.top_k or 0)  # -1 and 0 both mean off
    return dataclasses.replace(options, max_tokens=max_tokens, seed=seed, top_k=top_k).resolved()


def check_token_ids(request: Request, vocab_size: int) -> None:
    """Refuses token ids outside the model's vocabulary.

    Raises:
        InvalidArgumentError: An id is outside the vocabulary; names the field.
    """
    named: dict[str, Sequence[int]] = {
        "spec.sampling.logit_bias": [token_id for token_id, _ in request.sampling.logit_bias or ()],
        "spec.sampling.allowed_token_ids": request.sampling.allowed_token_ids or (),
        "spec.stop.token_ids": request.stop_token_ids,
    }
    if isinstance(request, TextCompletionRequest) and not isinstance(request.prompt, str):
        named["spec.token_ids"] = request.prompt
    check_vocabulary(named, vocab_size)


def check_vocabulary(named: Mapping[str, Sequence[int]], vocab_size: int) -> None:
    """Refuses token ids outside the model's vocabulary.

    Args:
        named: Lists of ids by the paths of their fields; the service checks that none is negative.
        vocab_size: Ids must be less.

    Raises:
        InvalidArgumentError: An id is not; names the field.
    """
    for field, token_ids in named.items():
        highest = max(token_ids, default=0)
        if highest >= vocab_size:
            raise InvalidArgumentError(
                f"Token id {highest} is not in the model's vocabulary; ids 0 to {vocab_size - 1} are allowed.",
                field=field,
            )


def wanted_tokens(request: Request, defaults: SamplingOptions) -> int | None:
    """Maximum tokens of an answer, asked for or by default; None = whatever the context window leaves."""
    if request.sampling.max_tokens is not None:
        return request.sampling.max_tokens
    if defaults.max_tokens is None and isinstance(request, TextCompletionRequest):
        return _TEXT_COMPLETION_TOKENS
    return defaults.max_tokens


def _answer_room(
    request: Request, prompt_tokens: int, max_model_len: int, *, wanted: int | None
) -> int:
    """Maximum tokens of the answer: what is wanted within the rest of the context window."""
    room = max_model_len - prompt_tokens
    if room < 1:
        what = "prompt" if isinstance(request, TextCompletionRequest) else "messages"
        raise ContextLengthError(
            f"{_window(max_model_len)} However, your {what} resulted in {prompt_tokens} tokens, which leaves no room"
            f" for an answer. Please reduce the length of the {what}.",
            field=request.prompt_field,
            metadata=_figures(prompt_tokens, max_model_len),
        )
    return room if wanted is None else min(room, wanted)


def _too_many_tokens(asked: int, prompt_tokens: int, max_model_len: int) -> ContextLengthError:
    return ContextLengthError(
        f"{_window(max_model_len)} However, you requested {prompt_tokens + asked} tokens: {prompt_tokens} in the prompt"
        f" and max_tokens {asked}. Please reduce max_tokens to at most {max_model_len - prompt_tokens}, or let the"
        " operator switch off --strict-max-tokens.",
        field="spec.sampling.max_tokens",
        metadata=_figures(prompt_tokens, max_model_len) | {"max_tokens": str(asked)},
    )


def _window(max_model_len: int) -> str:
    # Clients (LiteLLM, LangChain) recognise an overflow, and start their fallbacks, by these words of OpenAI's.
    return f"This model's maximum context length is {max_model_len} tokens (--max-model-len)."


def _figures(prompt_tokens: int, max_model_len: int) -> dict[str, str]:
    return {"prompt_tokens": str(prompt_tokens), "max_context_tokens": str(max_model_len)}


def engine_params(
    options: Sampling,
    request: Request,
    *,
    wanted: int | None,
    eos_token_ids: tuple[int, ...],
    banned: tuple[int, ...] = (),
    lists: TokenLists = NO_LISTS,
) -> SamplingParams:
    """Builds the engine's sampling parameters.

    Args:
        options: The effective settings.
        request: Has the stop tokens and the log probabilities to return.
        wanted: See `wanted_tokens`. The engine gets this limit, not the lowered one, so that it can tell an answer that
            the context window ended from one that is as long as was asked for.
        eos_token_ids: The model's end tokens.
        banned: Tokens that are never sampled.
        lists: The tokens and words to which the request restricts its answers.
    """
    never = (*banned, *lists.bad_tokens)
    changed = {
        "logit_bias": (*options.logit_bias, *((token_id, -math.inf) for token_id in never)),
        "max_tokens": options.max_tokens + 1 if wanted is None else wanted,
        "allowed_token_ids": (),
        "bad_words": (),
    }
    return SamplingParams(
        **{name: getattr(options, name) for name in (*SCALARS, *LISTS)} | changed,
        allowed_tokens=lists.allowed,
        bad_sequences=lists.bad_sequences,
        logprobs=request.top_logprobs,
        prompt_logprobs=request.prompt_logprobs,
        eos_token_ids=eos_token_ids,
        stop_token_ids=request.stop_token_ids,
    )
