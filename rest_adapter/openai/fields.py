"""The common JSON fields of all requests for an answer, and the handling of other fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Final

from pydantic import BeforeValidator

from rest_adapter.json_model import (
    ClosedModel,
    Float,
    Int32,
    Int64,
    Items,
    JsonModel,
    unknown_fields,
)
from rest_adapter.proto_fields import require_sampling_fields


_MAX_LOGIT_BIAS: Final = 4096

_IGNORED: Final = frozenset(
    (
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "user",
    )
)
"""Known fields that have no effect on an answer of this service."""

_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    "allowed_token_ids": (),
    "audio": (),
    "bad_words": (),
    "best_of": (1,),
    "chat_template": (),
    "documents": (),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": (),
    "guided_choice": (),
    "guided_decoding_backend": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "length_penalty": (1,),
    "modalities": (["text"],),
    "prediction": (),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "structured_outputs": (),
    "suffix": (),
    "tool_choice": ("none", "auto"),
    "tools": (),
    "use_beam_search": (False,),
    "web_search_options": (),
}
"""Known but unsupported fields, with the values that have no effect; null and empty values never have one."""


def _check_length(value: object) -> object:
    if isinstance(value, dict) and len(value) > _MAX_LOGIT_BIAS:
        raise ValueError(f"{len(value)} entries, but at most {_MAX_LOGIT_BIAS} are allowed")
    return value


LogitBias = Annotated[dict[str, Float], BeforeValidator(_check_length)]


class StreamOptions(JsonModel):
    """The contents of a stream besides the answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ProcessorOptions(ClosedModel):
    """Pixel budget for images that do not set their own."""

    min_pixels: Int64 | None = None
    max_pixels: Int64 | None = None


class AnswerRequest(JsonModel):
    """The common fields of all requests for an answer; null is the same as absent."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Int32 | None = None
    temperature: Float | None = None
    top_p: Float | None = None
    top_k: Int32 | None = None
    min_p: Float | None = None
    repetition_penalty: Float | None = None
    presence_penalty: Float | None = None
    frequency_penalty: Float | None = None
    seed: Int64 | None = None
    max_tokens: Int32 | None = None
    min_tokens: Int32 | None = None
    ignore_eos: bool | None = None
    logit_bias: LogitBias | None = None
    stop: str | Items[str] | None = None
    stop_token_ids: Items[Int32] | None = None
    include_stop_str_in_output: bool | None = None
    prompt_logprobs: Int32 | None = None
    return_token_ids: bool | None = None
    skip_special_tokens: bool | None = None
    grounding: bool | None = None
    mm_processor_kwargs: ProcessorOptions | None = None
    cache_salt: str | None = None
    request_id: str | None = None


require_sampling_fields(AnswerRequest)


def unknown_answer_fields(request: AnswerRequest) -> Iterator[str]:
    """The names of fields that are unknown.

    Raises:
        ApiError: A field is known but not supported, and its value would have an effect.
    """
    return unknown_fields(request, unsupported_unless=_NEUTRAL, ignored=_IGNORED)
