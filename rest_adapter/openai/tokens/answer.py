"""The JSON of tokens and of rendered prompts."""

from __future__ import annotations

from typing import Any

from google.protobuf import json_format

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import tokenize_service_pb2 as tokenize_pb
from rest_adapter.openai import answer
from rest_adapter.openai.chat.schema import Chat


def tokens(found: tokenize_pb.TokenizeResponse, *, strings: bool) -> dict[str, Any]:
    """The answer of `/tokenize`, as vLLM gives it."""
    return {
        "count": len(found.token_ids),
        "max_model_len": found.max_context_tokens,
        "tokens": list(found.token_ids),
        "token_strs": list(found.token_strings) if strings else None,
    }


def tokens_of_prompt(found: chat_pb.RenderChatCompletionResponse, strings: bool) -> dict[str, Any]:
    """The same for the prompt of a conversation."""
    return {
        "count": len(found.started.prompt_token_ids),
        "max_model_len": found.max_context_tokens,
        "tokens": list(found.started.prompt_token_ids),
        "token_strs": list(found.token_strings) if strings else None,
    }


def texts(found: str | list[str]) -> dict[str, Any]:
    """The answer of `/detokenize`, as vLLM gives it."""
    return {"prompt": found}


def prompt(
    found: chat_pb.RenderChatCompletionResponse, chat: Chat, *, strings: bool
) -> dict[str, Any]:
    """A request of vLLM for a generation from token ids, with the text, the images and the usage of the prompt."""
    started, request = found.started, chat.request
    settings = json_format.MessageToDict(
        started.effective_settings.sampling,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
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
        "reasoning_ended": not found.begins_with_reasoning,
        "stream": bool(request.stream),
        "cache_salt": request.cache_salt,
        "max_model_len": found.max_context_tokens,
        "usage": answer.usage(started.prompt_usage),
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
