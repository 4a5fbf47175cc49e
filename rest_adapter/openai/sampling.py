"""Converts the options of a generation to the proto: sampling, stops and response options."""

from __future__ import annotations

import re

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import sampling_pb2 as sampling_pb
from rest_adapter.errors import invalid, of_reason
from rest_adapter.media import OVERSIZED
from rest_adapter.openai.constraints import asked_form
from rest_adapter.openai.fields import AnswerRequest
from rest_adapter.proto_fields import SAMPLING_SCALARS, set_fields


def set_options(
    spec: chat_pb.ChatCompletionSpec | completion_pb.CompletionSpec,
    request: AnswerRequest,
    max_tokens: int | None,
) -> None:
    """Sets the common options of chats and text completions; `max_tokens` replaces the request's.

    Raises:
        ApiError: An option is invalid.
    """
    if not request.model:  # over gRPC that is the canonical model, in OpenAI's API an unknown name
        message = "model is empty; GET /v1/models lists the names of the models."
        raise of_reason("MODEL_NOT_FOUND", message, param="model")
    spec.model = request.model
    spec.cache_salt = request.cache_salt or ""
    spec.priority = request.priority or 0
    spec.sampling.CopyFrom(_sampling_options(request, max_tokens))
    spec.stop.CopyFrom(_stop_options(request))
    if (form := asked_form(request)) is not None:
        spec.constraint.CopyFrom(form.constraint)
    if request.n is not None:
        spec.n = request.n
    if request.return_token_ids:
        spec.response.return_token_ids = spec.response.return_prompt_token_ids = True
    if request.grounding:
        spec.response.grounding = True
    if request.skip_special_tokens is not None:
        spec.response.keep_special_tokens = not request.skip_special_tokens
    set_fields(spec.media, request, ("min_pixels", "max_pixels"))
    if request.mm_processor_kwargs is not None:
        set_fields(spec.media, request.mm_processor_kwargs, ("min_pixels", "max_pixels"))
        if (oversized := request.mm_processor_kwargs.oversized_image) is not None:
            spec.media.oversized = OVERSIZED[oversized]


def _sampling_options(
    request: AnswerRequest, max_tokens: int | None
) -> sampling_pb.SamplingOptions:
    options = sampling_pb.SamplingOptions()
    set_fields(options, request, SAMPLING_SCALARS)
    if request.repeat_penalty is not None and request.repetition_penalty is None:
        options.repetition_penalty = request.repeat_penalty  # Ollama's name for it
    if max_tokens is not None:
        options.max_tokens = max_tokens
    for key, bias in (request.logit_bias or {}).items():
        if not re.fullmatch(r"\d{1,9}", key, re.ASCII):
            raise invalid(
                f"'logit_bias' has the key {key[:80]!r}, but keys must be token ids.", "logit_bias"
            )
        options.logit_bias[int(key)] = bias
    options.allowed_token_ids.extend(request.allowed_token_ids or ())
    options.bad_words.extend(request.bad_words or ())
    return options


def _stop_options(request: AnswerRequest) -> sampling_pb.StopOptions:
    given = [request.stop] if isinstance(request.stop, str) else request.stop or []
    strings = [string for string in given if string]
    options = sampling_pb.StopOptions(strings=strings, token_ids=request.stop_token_ids or [])
    if request.include_stop_str_in_output is not None:
        options.include_stop_string = request.include_stop_str_in_output
    return options
