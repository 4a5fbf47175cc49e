"""Validates proto requests and converts them to domain requests, checking every limit that the proto states."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Any, Final

from inference_service.domain import (
    ChatMessage,
    ChatRequest,
    GenerationOptions,
    Media,
    Role,
    TextCompletionRequest,
    VideoPart,
)
from inference_service.errors import (
    InvalidArgumentError,
    TooManyImagesError,
)
from inference_service.grpc_api.field_checks import check_count, check_token_ids, optional
from inference_service.grpc_api.request_messages import chat_messages, image_part
from inference_service.grpc_api.request_options import generation_options
from inference_service.grpc_api.request_tools import (
    reasoning_effort,
    tool_choice,
    tools_of,
)
from inference_service.settings import ServiceSettings
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb


_MAX_PROMPT_TOKENS: Final = 2**20
"""More than any model's context window; how many fit is checked later."""


def chat_request(
    spec: chat_pb.ChatCompletionSpec, model: str, fallback_id: str, settings: ServiceSettings
) -> ChatRequest:
    """Validates a request.

    Args:
        spec: The request; its `model` was resolved by the caller.
        model: Canonical name of the model.
        fallback_id: Id of a request without one.
        settings: The operator's limits.

    Raises:
        InvalidArgumentError: A field is invalid; `field` is its path, beginning with `spec`.
        UnsupportedParameterError: A field is known but not supported.
    """
    messages = chat_messages(spec.messages)
    if not messages:
        raise InvalidArgumentError(
            "messages is empty, but at least one message is required.", field="spec.messages"
        )
    opens, continues = _final_turn(spec.template, messages)
    tools = tools_of(spec.tools)
    choice = tool_choice(spec.tool_choice, tools)
    request = ChatRequest(
        messages=messages,
        add_generation_prompt=opens,
        continue_final_message=continues,
        enable_thinking=optional(spec.template, "enable_thinking"),
        reasoning_effort=reasoning_effort(spec.template.reasoning_effort),
        prefer_thinking=optional(spec.template, "prefer_thinking"),
        tools=tools,
        tool_choice=choice,
        **option_fields(generation_options(spec, model, fallback_id, settings)),
    )
    check_images(request.media, "spec.messages", settings)
    return request


def text_completion_request(
    spec: completion_pb.CompletionSpec, model: str, fallback_id: str, settings: ServiceSettings
) -> TextCompletionRequest:
    """Validates a text completion request; arguments and errors as `chat_request`."""
    kind = spec.WhichOneof("prompt")
    if kind is None:
        raise InvalidArgumentError(
            "The request has no prompt: set either text or token_ids.", field="spec.text"
        )
    field = f"spec.{kind}"
    check_count(spec.token_ids.ids, _MAX_PROMPT_TOKENS, "spec.token_ids")
    prompt: str | tuple[int, ...] = spec.text if kind == "text" else tuple(spec.token_ids.ids)
    if not prompt:
        raise InvalidArgumentError(
            f"{kind} is empty, but a prompt of at least one token is required.", field=field
        )
    if not isinstance(prompt, str):
        check_token_ids((min(prompt),), field)  # int32 bounds the others
    images = tuple(
        image_part(image, f"spec.images[{index}]") for index, image in enumerate(spec.images)
    )
    check_images(images, "spec.images", settings)
    options = generation_options(spec, model, fallback_id, settings)
    return TextCompletionRequest(prompt=prompt, images=images, **option_fields(options))


def option_fields(options: GenerationOptions) -> dict[str, Any]:
    """The fields as arguments for the constructor of a subclass."""
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}


def check_images(media: Sequence[Media], field: str, settings: ServiceSettings) -> None:
    """Checks the number of images and of the frames of each video.

    Raises:
        TooManyImagesError: There are too many.
    """
    if len(media) > settings.max_images:
        raise TooManyImagesError(
            f"The request has {len(media)} images and videos, but at most {settings.max_images} are allowed"
            " (--max-images).",
            field=field,
        )
    for part in media:
        if isinstance(part, VideoPart) and len(part.frames) > settings.max_video_frames:
            raise TooManyImagesError(
                f"The video has {len(part.frames)} frames, but at most {settings.max_video_frames}"
                " are allowed (--max-video-frames).",
                field=part.field,
            )


def _final_turn(
    template: chat_pb.TemplateOptions, messages: tuple[ChatMessage, ...]
) -> tuple[bool, bool]:
    """Whether to open an assistant turn, and whether to continue the last message instead."""
    opens = template.add_generation_prompt
    if not template.continue_final_message:
        return opens or not template.HasField("add_generation_prompt"), False
    field = "spec.template.continue_final_message"
    if messages[-1].role is not Role.ASSISTANT:
        raise InvalidArgumentError(
            "continue_final_message requires that the last message has the role assistant.",
            field=field,
        )
    if messages[-1].tool_calls:
        raise InvalidArgumentError(
            "continue_final_message is set, but the last message has tool calls, behind which no text follows.",
            field=field,
        )
    if opens:
        raise InvalidArgumentError(
            "add_generation_prompt and continue_final_message cannot both be set.", field=field
        )
    return False, True
