"""Validates the options that several services share: sampling, stop, log probabilities, response, ids."""

from __future__ import annotations

from collections.abc import Collection
import dataclasses
from functools import partial
import re
from typing import Final

from inference_service.domain import GenerationOptions
from inference_service.errors import InvalidArgumentError
from inference_service.grpc_api.constraints import constraint_of
from inference_service.grpc_api.field_checks import (
    PIXELS,
    check_bytes,
    check_count,
    check_range,
    check_token_ids,
    field_name,
    optional,
    optional_integer,
    quoted,
    rejects_oversized,
)
from inference_service.sampling import RANGES, Range, SamplingOptions
from inference_service.settings import ServiceSettings
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import decision_service_pb2 as decision_pb
from qwenvl.inference.v1 import sampling_pb2 as sampling_pb


_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")

_LOGPROBS: Final = Range(0, 20)
_BIAS: Final = Range(-100, 100)
_MAX_STOP_STRINGS: Final = 64
_MAX_STOP_BYTES: Final = 256
_MAX_STOP_TOKENS: Final = 64
_MAX_LOGIT_BIAS: Final = 300
_MAX_ALLOWED_TOKENS: Final = 2**18
_MAX_BAD_WORDS: Final = 256
_MAX_BAD_WORD_BYTES: Final = 256
_MAX_SALT_BYTES: Final = 128
_ADVICE: Final = {
    "max_tokens": "leave it out for no limit but the rest of the context window (--default-max-tokens)"
}
"""What a value out of range may mean, and how to say it."""


def generation_options(
    spec: chat_pb.ChatCompletionSpec | completion_pb.CompletionSpec,
    model: str,
    fallback_id: str,
    settings: ServiceSettings,
) -> GenerationOptions:
    """Validates the options that both kinds of requests share; arguments and errors as `requests.chat_request`."""
    n = spec.n if spec.HasField("n") else 1
    check_range(n, Range(1, settings.max_n), "spec.n", setting="--max-n")
    # Each option that is named like the field it asks for is the deprecated spelling of the other.
    return GenerationOptions(
        request_id=_request_id(spec.request_id or fallback_id),
        model=model,
        sampling=_sampling(spec.sampling),
        stop_strings=_stop_strings(spec.stop.strings),
        stop_token_ids=_stop_tokens(spec.stop.token_ids),
        include_stop_string=spec.stop.include_stop_string,
        top_logprobs=optional_integer(spec.logprobs, "top_logprobs", _LOGPROBS, "spec.logprobs"),
        prompt_logprobs=optional_integer(
            spec.logprobs, "prompt_logprobs", _LOGPROBS, "spec.logprobs"
        ),
        constraint=constraint_of(spec),
        n=n,
        return_token_ids=spec.response.return_token_ids or spec.response.token_ids,
        return_prompt_token_ids=(
            spec.response.return_prompt_token_ids or spec.response.prompt_token_ids
        ),
        return_prompt_text=spec.response.return_prompt_text or spec.response.prompt_text,
        keep_special_tokens=spec.response.keep_special_tokens,
        grounding=spec.response.grounding,
        min_pixels=optional_integer(spec.media, "min_pixels", PIXELS, "spec.media"),
        max_pixels=optional_integer(spec.media, "max_pixels", PIXELS, "spec.media"),
        rejects_oversized=bool(rejects_oversized(spec.media.oversized, "spec.media")),
        cache_salt=_cache_salt(spec.cache_salt),
        priority=spec.priority,
    )


def decision_options(
    spec: decision_pb.DecisionSpec, model: str, fallback_id: str
) -> GenerationOptions:
    """Validates the options of a decision request; arguments and errors as `requests.chat_request`."""
    return GenerationOptions(
        request_id=_request_id(spec.request_id or fallback_id),
        model=model,
        min_pixels=optional_integer(spec.media, "min_pixels", PIXELS, "spec.media"),
        max_pixels=optional_integer(spec.media, "max_pixels", PIXELS, "spec.media"),
        rejects_oversized=bool(rejects_oversized(spec.media.oversized, "spec.media")),
        cache_salt=_cache_salt(spec.cache_salt),
    )


def _sampling(options: sampling_pb.SamplingOptions) -> SamplingOptions:
    sampling = SamplingOptions.read(partial(optional, options))
    for name, limits in RANGES.items():
        check_range(
            optional(options, name), limits, f"spec.sampling.{name}", advice=_ADVICE.get(name, "")
        )
    low, high = sampling.min_tokens, sampling.max_tokens
    if low is not None and high is not None and low > high:
        raise InvalidArgumentError(
            f"min_tokens is {low}, but must not exceed max_tokens, which is {high}.",
            field="spec.sampling.min_tokens",
        )
    path = "spec.sampling.logit_bias"
    check_count(options.logit_bias, _MAX_LOGIT_BIAS, path)
    check_token_ids(options.logit_bias, path)
    for token_id, bias in options.logit_bias.items():
        check_range(bias, _BIAS, path, name=f"logit_bias[{token_id}]")
    # Counted first: making the tuple stops all other calls.
    check_count(options.allowed_token_ids, _MAX_ALLOWED_TOKENS, "spec.sampling.allowed_token_ids")
    allowed = tuple(options.allowed_token_ids)
    check_token_ids(allowed, "spec.sampling.allowed_token_ids")
    return dataclasses.replace(
        sampling,
        logit_bias=tuple(sorted(options.logit_bias.items())),
        allowed_token_ids=allowed,
        bad_words=_strings(
            options.bad_words,
            "spec.sampling.bad_words",
            maximum=_MAX_BAD_WORDS,
            max_bytes=_MAX_BAD_WORD_BYTES,
        ),
    )


def _stop_strings(strings: Collection[str]) -> tuple[str, ...]:
    path = "spec.stop.strings"
    return _strings(strings, path, maximum=_MAX_STOP_STRINGS, max_bytes=_MAX_STOP_BYTES)


def _strings(
    strings: Collection[str], path: str, *, maximum: int, max_bytes: int
) -> tuple[str, ...]:
    """Texts of which there are at most `maximum`, and none is empty or has more than `max_bytes`."""
    check_count(strings, maximum, path)
    kept, name = tuple(strings), field_name(path)
    for index, string in enumerate(kept):
        size = len(string.encode())
        if not 1 <= size <= max_bytes:
            raise InvalidArgumentError(
                f"{name}[{index}] is {quoted(string)} with {size} bytes, but must have 1 to {max_bytes}.",
                field=path,
            )
    return kept


def _stop_tokens(token_ids: Collection[int]) -> tuple[int, ...]:
    path = "spec.stop.token_ids"
    check_count(token_ids, _MAX_STOP_TOKENS, path)
    kept = tuple(token_ids)
    check_token_ids(kept, path)
    return kept


def _request_id(text: str) -> str:
    if not _REQUEST_ID.fullmatch(text):
        raise InvalidArgumentError(
            f"request_id is {quoted(text)}, but must have 1 to 128 printable ASCII characters and no spaces.",
            field="spec.request_id",
        )
    return text


def _cache_salt(text: str) -> bytes:
    check_bytes(text, _MAX_SALT_BYTES, "spec.cache_salt")
    return text.encode()
