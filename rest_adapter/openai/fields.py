"""The common JSON fields of all requests for an answer, and the handling of other fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import BeforeValidator

from rest_adapter.errors import unsupported
from rest_adapter.json_model import (
    ClosedModel,
    Count,
    Float,
    Int32,
    Int64,
    Items,
    JsonModel,
    Seed,
    asks_for_nothing,
    unknown_fields,
)
from rest_adapter.openai.shapes import ResponseFormat
from rest_adapter.openapi.operation import Shape
from rest_adapter.proto_fields import require_sampling_fields
from rest_adapter.validation import check_length


_MAX_LOGIT_BIAS: Final = 4096
_MAX_LOGIT_BIAS_CHARS: Final = 32 * _MAX_LOGIT_BIAS

LABELS: Final = ("prompt_cache_key", "safety_identifier", "user")
"""Fields about the caller's own caller. Responses repeat them in many events, so that they are bounded, as OpenAI's."""

MAX_LABEL_CHARS: Final = 512

_IGNORED: Final = frozenset(
    (
        "guided_decoding_backend",
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "thinking_budget",
        "user",
        "verbosity",
    )
)
"""Known fields that have no effect on an answer of this service."""

_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    "attachments": (),
    "audio": (),
    "best_of": (1,),
    "chat_template": (),
    "documents": (),
    "ebnf": (),
    "echo": (),
    "enable_search": (),
    "files": (),
    "function_call": ("none", "auto"),
    "functions": (),
    "grammar": (),
    "guided_whitespace_pattern": (),
    "image": (),
    "image_url": (),
    "image_urls": (),
    "images": (),
    "json_schema": (),
    "length_penalty": (1,),
    "logits_processors": (),
    "modalities": (["text"],),
    "ocr_options": (),
    "structural_tag": (),
    "suffix": (),
    "tool_choice": ("none", "auto", {"type": "none"}, {"type": "auto"}),
    "tools": (),
    "translation_options": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (),
    "videos": (),
    "vl_high_resolution_images": (),
    "web_search": (),
    "web_search_options": (),
}
"""Known but unsupported fields, with the values that have no effect; null, `false` and empty values never have one."""

_LOGGED_IGNORED: Final = ("prediction", "store")
"""Known fields that are ignored, but not silently: nothing is stored, and a prediction could only save time."""

_CONTENT: Final = {
    **dict.fromkeys(("input", "prompt"), "send it in 'messages'"),
    **dict.fromkeys(
        ("instructions", "system", "system_prompt"), "send it in 'messages', with the role system"
    ),
    "messages": "send them to /v1/chat/completions",
    **dict.fromkeys(
        (
            "max_completion_tokens",
            "max_new_tokens",
            "max_output_tokens",
            "max_tokens_to_sample",
            "num_predict",
        ),
        "send it as 'max_tokens'",
    ),
    **dict.fromkeys(("stop_sequences", "stop_words"), "send it as 'stop'"),
    **dict.fromkeys(
        ("extra_body", "generationConfig", "generation_config", "options", "parameters"),
        "send its fields at top level",
    ),
}
"""Fields of other APIs with content or a limit that would be lost here, with what to do instead."""


def _read_bias(value: object) -> object:
    """The object; some clients send it as the text of one."""
    if isinstance(value, str):
        if len(value) > _MAX_LOGIT_BIAS_CHARS:  # its values are not counted with those of the body
            raise ValueError(
                f"an object, or the JSON text of one with at most {_MAX_LOGIT_BIAS_CHARS} characters"
                f" (it has {len(value)})"
            )
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            raise ValueError("an object, or the JSON text of one") from None
    if isinstance(value, dict) and len(value) > _MAX_LOGIT_BIAS:
        raise ValueError(f"an object with at most {_MAX_LOGIT_BIAS} entries")
    return value


LogitBias = Annotated[dict[str, Float], BeforeValidator(_read_bias), Shape(dict[str, float] | str)]


class StreamOptions(JsonModel):
    """The contents of a stream besides the answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class ProcessorOptions(ClosedModel):
    """Pixel budget for images that do not set their own, and what happens to those that exceed it."""

    min_pixels: Int64 | None = None
    max_pixels: Int64 | None = None
    oversized_image: Literal["downsize", "error"] | None = None


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
    repeat_penalty: Float | None = None
    presence_penalty: Float | None = None
    frequency_penalty: Float | None = None
    seed: Seed | None = None
    max_tokens: Count | None = None
    min_tokens: Count | None = None
    ignore_eos: bool | None = None
    logit_bias: LogitBias | None = None
    allowed_token_ids: Items[Int32] | None = None
    bad_words: Items[str] | None = None
    stop: str | Items[str] | None = None
    stop_token_ids: Items[Int32] | None = None
    include_stop_str_in_output: bool | None = None
    prompt_logprobs: Int32 | None = None
    return_token_ids: bool | None = None
    skip_special_tokens: bool | None = None
    grounding: bool | None = None
    mm_processor_kwargs: ProcessorOptions | None = None
    min_pixels: Int64 | None = None
    max_pixels: Int64 | None = None
    cache_salt: str | None = None
    priority: Int32 | None = None
    request_id: str | None = None
    response_format: Annotated[Any, Shape(ResponseFormat | str | None)] = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: Annotated[Any, Shape(dict[str, Any] | str | None)] = None
    guided_regex: Annotated[Any, Shape(str | None)] = None
    guided_choice: Annotated[Any, Shape(list[str] | None)] = None
    guided_grammar: Annotated[Any, Shape(str | None)] = None
    regex: Annotated[Any, Shape(str | None)] = None


require_sampling_fields(AnswerRequest)


def check_labels(document: object) -> None:
    """Refuses labels that are too long.

    Raises:
        ApiError: One is.
    """
    if isinstance(document, dict):
        for name in LABELS:
            check_length(name, document.get(name), MAX_LABEL_CHARS)


def unknown_answer_fields(request: AnswerRequest) -> Iterator[str]:
    """The names of fields that are unknown.

    Raises:
        ApiError: A field is known but not supported, and its value would have an effect.
    """
    for name, value in (request.__pydantic_extra__ or {}).items():
        if name in _CONTENT and not asks_for_nothing(value):
            raise unsupported(name, value, _CONTENT[name])
        if name in _LOGGED_IGNORED and not asks_for_nothing(value):
            yield name
    ignored = (*_IGNORED, *_LOGGED_IGNORED, *_CONTENT)
    yield from unknown_fields(request, unsupported_unless=_NEUTRAL, ignored=ignored)
