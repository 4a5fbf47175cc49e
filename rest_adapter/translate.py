"""What the JSON of OpenAI means in the proto, and back: pure functions.

Owns the correspondence of fields and their paths in error messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import hashlib
import re
from typing import Any, Final

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import sampling_pb2 as sampling_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from rest_adapter.errors import aborted, invalid, too_large
from rest_adapter.schema import (
    AnswerRequest,
    ChatRequest,
    Message,
    RefusalPart,
    TextPart,
    VideoPart,
)
from rest_adapter.translate_media import image_of, part_suffix, set_fields, video_of


_ROLES: Final = {
    "system": message_pb.ROLE_SYSTEM,
    "developer": message_pb.ROLE_SYSTEM,
    "user": message_pb.ROLE_USER,
    "assistant": message_pb.ROLE_ASSISTANT,
}
_FINISH_REASONS: Final = {
    usage_pb.FINISH_REASON_STOP: "stop",
    usage_pb.FINISH_REASON_LENGTH: "length",
    usage_pb.FINISH_REASON_CONTEXT_LENGTH: "length",
    usage_pb.FINISH_REASON_TOOL_CALLS: "tool_calls",
}
_SAMPLING_FIELDS: Final = tuple(
    field.name
    for field in sampling_pb.SamplingOptions.DESCRIPTOR.fields
    if field.name not in {"max_tokens", "logit_bias"}
)
"""The settings that JSON spells as the proto does."""
LEAST_LOGPROB: Final = -9999.0
"""What JSON gets for minus infinity, which it cannot spell."""

_PARAMS: Final = {
    "stop.strings": "stop",
    "stop.token_ids": "stop_token_ids",
    "stop.include_stop_string": "include_stop_str_in_output",
    "response.return_token_ids": "return_token_ids",
    "response.return_prompt_token_ids": "return_token_ids",
    "response.keep_special_tokens": "skip_special_tokens",
    "response.grounding": "grounding",
    "template.enable_thinking": "chat_template_kwargs.enable_thinking",
    "media.min_pixels": "mm_processor_kwargs.min_pixels",
    "media.max_pixels": "mm_processor_kwargs.max_pixels",
    "name": "model",
}
_PREFIXES: Final = (
    ("sampling.", ""),
    ("logprobs.", ""),
    ("template.", ""),
    ("constraint", "response_format"),
)
_MESSAGE_PATH: Final = re.compile(r"messages\[(\d+)\]\.parts(?:\[(\d+)\](?:\.(.*))?)?$")


def to_spec(request: ChatRequest, *, max_media_bytes: int) -> chat_pb.ChatCompletionSpec:
    """Makes the proto request.

    Args:
        request: The checked JSON.
        max_media_bytes: Most bytes of all decoded images together.

    Raises:
        ApiError: An image's URI cannot be decoded, the images are too large, or a field has no proto form.
    """
    spec = chat_pb.ChatCompletionSpec(
        model=request.model,
        request_id=request.request_id or "",
        cache_salt=request.cache_salt or "",
        sampling=sampling_options(request, request.max_completion_tokens),
        stop=stop_options(request),
    )
    budget = max_media_bytes
    for index, message in enumerate(request.messages):
        target = spec.messages.add(role=_ROLES[message.role], name=message.name or "")
        budget -= _add_parts(target, message, f"messages[{index}]", budget)
    if request.n is not None:
        spec.n = request.n
    if request.logprobs:
        spec.logprobs.top_logprobs = request.top_logprobs or 0
    if request.prompt_logprobs is not None:
        spec.logprobs.prompt_logprobs = request.prompt_logprobs
    if request.return_token_ids:
        spec.response.return_token_ids = spec.response.return_prompt_token_ids = True
    if request.grounding:
        spec.response.grounding = True
    if request.skip_special_tokens is not None:
        spec.response.keep_special_tokens = not request.skip_special_tokens
    set_fields(spec.template, request, ("add_generation_prompt", "continue_final_message"))
    if request.chat_template_kwargs is not None:
        set_fields(spec.template, request.chat_template_kwargs, ("enable_thinking",))
    if request.mm_processor_kwargs is not None:
        set_fields(spec.media, request.mm_processor_kwargs, ("min_pixels", "max_pixels"))
    return spec


def sampling_options(request: AnswerRequest, max_tokens: int | None) -> sampling_pb.SamplingOptions:
    """How tokens are chosen; `max_tokens` wins over the request's own."""
    options = sampling_pb.SamplingOptions()
    set_fields(options, request, _SAMPLING_FIELDS)
    most = request.max_tokens if max_tokens is None else max_tokens
    if most is not None:
        options.max_tokens = most
    for key, bias in (request.logit_bias or {}).items():
        if not re.fullmatch(r"\d{1,9}", key, re.ASCII):
            raise invalid("The keys of 'logit_bias' must be token ids.", "logit_bias")
        options.logit_bias[int(key)] = bias
    return options


def stop_options(request: AnswerRequest) -> sampling_pb.StopOptions:
    """What ends an answer."""
    strings = [request.stop] if isinstance(request.stop, str) else request.stop or []
    options = sampling_pb.StopOptions(strings=strings, token_ids=request.stop_token_ids or [])
    if request.include_stop_str_in_output is not None:
        options.include_stop_string = request.include_stop_str_in_output
    return options


def _add_parts(target: message_pb.Message, message: Message, path: str, budget: int) -> int:
    """Appends one proto part for every part of the JSON, so that positions agree; gives the image bytes."""
    content = message.content
    if isinstance(content, str):
        target.parts.add(text=content)
        return 0
    if message.refusal is not None and not content:
        target.parts.add(refusal=message.refusal)
        return 0
    if not content:
        raise invalid("The message has no content.", f"{path}.content")
    used = 0
    for position, part in enumerate(content):
        if isinstance(part, TextPart):
            target.parts.add(text=part.text)
        elif isinstance(part, RefusalPart):
            target.parts.add(refusal=part.refusal)
        elif isinstance(part, VideoPart):
            video = video_of(part, f"{path}.content[{position}]")
            used += sum(len(frame.data) for frame in video.frames)
            target.parts.add(video=video)
        else:
            image = image_of(part, f"{path}.content[{position}]")
            used += len(image.data)
            target.parts.add(image=image)
        if used > budget:
            raise too_large("The images of the request are too large together.")
    return used


def plain_param(path: str) -> str:
    """How a proto field that all requests have reads in their JSON."""
    path = _PARAMS.get(path, path)
    for prefix, replacement in _PREFIXES:
        if path.startswith(prefix):
            path = replacement + path.removeprefix(prefix)
            break
    return "logit_bias" if path.startswith("logit_bias") else path


@dataclass(frozen=True, slots=True)
class FieldPaths:
    """How the proto fields of one request read in its JSON."""

    request: ChatRequest

    def param_of(self, field: str) -> str | None:
        """Turns `spec.messages[0].parts[1].image` into `messages[0].content[1].image_url.url`."""
        path = field.removeprefix("spec.")
        if not path:
            return None
        if match := _MESSAGE_PATH.match(path):
            return self._message_param(int(match[1]), match[2], match[3] or "")
        if path.startswith("messages"):
            return path
        path = plain_param(path)
        if path == "max_tokens" and self.request.max_completion_tokens is not None:
            return "max_completion_tokens"
        return path

    def _message_param(self, index: int, position: str | None, rest: str) -> str:
        path = f"messages[{index}]"
        if not 0 <= index < len(self.request.messages):
            return path
        content = self.request.messages[index].content
        if position is None or not isinstance(content, list) or int(position) >= len(content):
            return f"{path}.content"
        return f"{path}.content[{position}]{part_suffix(content[int(position)], rest)}"


def finish_reason(reason: usage_pb.FinishReason) -> str:
    """OpenAI's word for why an answer ended.

    Raises:
        ApiError: It was aborted: no word of OpenAI's tells that an answer is not whole.
    """
    if reason == usage_pb.FINISH_REASON_ABORTED:
        raise aborted()
    return _FINISH_REASONS.get(reason, "stop")


def fingerprint(model: str, version: str) -> str:
    """`system_fingerprint`: changes with the model and with this software."""
    return "fp_" + hashlib.sha256(f"{model}\0{version}".encode()).hexdigest()[:12]


def completion_id(started: generation_pb.Started) -> str:
    """The id of a response, which tells the request's."""
    return f"chatcmpl-{started.request_id}"


def usage(value: usage_pb.Usage) -> dict[str, Any]:
    """OpenAI's `usage`."""
    tokens = {detail.modality: detail.tokens for detail in value.prompt_details}
    details = {
        "cached_tokens": value.cached_tokens,
        "image_tokens": tokens.get(usage_pb.MODALITY_IMAGE, 0),
    }
    if usage_pb.MODALITY_VIDEO in tokens:
        details["video_tokens"] = tokens[usage_pb.MODALITY_VIDEO]
    return {
        "prompt_tokens": value.prompt_tokens,
        "completion_tokens": value.completion_tokens,
        "total_tokens": value.total_tokens,
        "prompt_tokens_details": details,
    }


def logprobs(entries: Sequence[usage_pb.LogprobEntry]) -> dict[str, Any]:
    """OpenAI's `choices[].logprobs`."""
    content = [
        _logprob(entry.chosen) | {"top_logprobs": [_logprob(token) for token in entry.top]}
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def _logprob(token: usage_pb.TokenLogprob) -> dict[str, Any]:
    return {
        "token": token.token,
        "bytes": list(token.bytes),
        "logprob": max(token.logprob, LEAST_LOGPROB),
    }


def prompt_logprobs(entries: Sequence[usage_pb.LogprobEntry]) -> list[dict[str, Any] | None]:
    """The `prompt_logprobs` of vLLM: for every token of the prompt null or {token id: logprob, rank, text}."""
    return [
        {
            str(token.token_id): {
                "logprob": max(token.logprob, LEAST_LOGPROB),
                "rank": token.rank,
                "decoded_token": token.token,
            }
            for token in (*entry.top, entry.chosen)
        }
        if entry.HasField("chosen")
        else None
        for entry in entries
    ]


def completion(
    response: chat_pb.CreateChatCompletionResponse, request: ChatRequest, version: str
) -> dict[str, Any]:
    """OpenAI's `chat.completion`.

    Raises:
        ApiError: The answer was aborted.
    """
    started = response.started
    document: dict[str, Any] = {
        "id": completion_id(started),
        "object": "chat.completion",
        "created": started.created,
        "model": started.model,
        "choices": [_choice(choice, request) for choice in response.choices],
        "usage": usage(response.usage),
        "system_fingerprint": fingerprint(started.model, version),
    }
    if request.return_token_ids:
        document["prompt_token_ids"] = list(started.prompt_token_ids)
    if request.prompt_logprobs is not None:
        document["prompt_logprobs"] = prompt_logprobs(started.prompt_logprobs)
    return document


def _choice(choice: generation_pb.Choice, request: ChatRequest) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    document: dict[str, Any] = {
        "index": choice.index,
        "message": message,
        "logprobs": logprobs(choice.logprobs) if request.logprobs else None,
        "finish_reason": finish_reason(choice.finish_reason),
        "stop_reason": stop_reason(choice.stop_detail),
    }
    if request.return_token_ids:
        document["token_ids"] = list(choice.token_ids)
    if request.grounding:
        document["grounding"] = groundings(choice.groundings)
    return document


def _edges(box: usage_pb.BoundingBox) -> tuple[float, float, float, float]:
    return box.x_min, box.y_min, box.x_max, box.y_max


def groundings(found: Sequence[usage_pb.Grounding]) -> list[dict[str, Any]]:
    """The boxes of an answer: `box` is left, top, right, bottom in pixels of the image as decoded."""
    return [
        {
            "label": item.label,
            "box": [round(edge, 2) for edge in _edges(item.box)],
            "image_index": item.image_index,
        }
        for item in found
    ]


def stop_reason(detail: usage_pb.StopDetail) -> str | int | None:
    """The `stop_reason` of vLLM: the stop string or token id of the caller that ended the answer."""
    trigger = detail.WhichOneof("trigger")
    if trigger == "stop_string":
        return detail.stop_string
    return detail.stop_token_id if trigger == "stop_token_id" else None


def model(value: model_pb.Model) -> Mapping[str, Any]:
    """OpenAI's `model`, with the context window as vLLM tells it and what the model reads."""
    modalities = {usage_pb.MODALITY_TEXT: "text", usage_pb.MODALITY_IMAGE: "image"}
    return {
        "id": value.name,
        "object": "model",
        "created": value.created,
        "owned_by": "qwen-vl-serving",
        "root": value.canonical_name,
        "max_model_len": value.max_context_tokens,
        "input_modalities": [modalities[m] for m in value.input_modalities if m in modalities],
    }
