"""The JSON of a rendered prompt: a request of vLLM for a generation from token ids, with the text and the images."""

from __future__ import annotations

from typing import Any

from google.protobuf import json_format

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb


def rendered_prompt(
    found: chat_pb.RenderChatCompletionResponse | completion_pb.RenderCompletionResponse,
    usage: dict[str, Any],
    *,
    stream: bool,
    only_prompt: bool = False,
    cache_salt: str | None = None,
    strings: bool = False,
) -> dict[str, Any]:
    """The prompt of a request, exactly as generation would use it.

    Args:
        found: The prompt.
        usage: Its tokens, in the form of the dialect.
        stream: The request asks for a stream.
        only_prompt: The request asks for no answer; the service's answers have at least one token.
        cache_salt: Of the request.
        strings: The tokens are wanted as the vocabulary writes them, too.
    """
    started = found.started
    settings = json_format.MessageToDict(
        started.effective_settings.sampling,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
    if only_prompt:
        settings["max_tokens"] = 0
    reasons = (
        isinstance(found, chat_pb.RenderChatCompletionResponse) and found.begins_with_reasoning
    )
    features = None
    if found.placeholders:
        hashes = [placeholder.key.hex() for placeholder in found.placeholders]
        places = [{"offset": p.offset, "length": p.length} for p in found.placeholders]
        features = {"mm_hashes": {"image": hashes}, "mm_placeholders": {"image": places}}
    document = {
        "request_id": started.request_id,
        "model": started.model,
        "token_ids": list(started.prompt_token_ids),
        "prompt_text": started.prompt_text,
        "features": features,
        "images": [_image(image) for image in started.images],
        "sampling_params": settings
        | {
            "seed": started.effective_settings.sampling.seed,
            "n": started.effective_settings.n,
            "stop": list(started.effective_settings.stop.strings),
            "stop_token_ids": list(started.effective_settings.stop.token_ids),
        },
        "reasoning_ended": not reasons,
        "stream": stream,
        "cache_salt": cache_salt,
        "max_model_len": found.max_context_tokens,
        "usage": usage,
    }
    return document | ({"token_strs": list(found.token_strings)} if strings else {})


def _image(image: Any) -> dict[str, Any]:
    shape = {
        "original_width": image.original_width,
        "original_height": image.original_height,
        "processed_width": image.processed_width,
        "processed_height": image.processed_height,
        "tokens": image.tokens,
    }
    return shape | ({"uuid": image.uuid} if image.uuid else {})
