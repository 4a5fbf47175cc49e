"""Validates messages, their parts and images, and converts them to the domain's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from inference_service.domain import ChatMessage, Detail, ImagePart, Part, Role, TextPart, VideoPart
from inference_service.errors import InvalidArgumentError, UnsupportedParameterError
from inference_service.grpc_api.field_checks import (
    PIXELS,
    check_bytes,
    check_count,
    check_range,
    optional_integer,
    rejects_oversized,
)
from inference_service.grpc_api.request_tools import check_calls, tool_call
from inference_service.grpc_api.tool_results import messages_in_order
from inference_service.sampling import Range
from qwenvl.inference.v1 import message_pb2 as message_pb


_ROLES: Final = {
    message_pb.ROLE_SYSTEM: Role.SYSTEM,
    message_pb.ROLE_USER: Role.USER,
    message_pb.ROLE_ASSISTANT: Role.ASSISTANT,
    message_pb.ROLE_TOOL: Role.TOOL,
}
_DETAILS: Final = {
    message_pb.IMAGE_DETAIL_UNSPECIFIED: Detail.AUTO,
    message_pb.IMAGE_DETAIL_AUTO: Detail.AUTO,
    message_pb.IMAGE_DETAIL_LOW: Detail.LOW,
    message_pb.IMAGE_DETAIL_HIGH: Detail.HIGH,
    message_pb.IMAGE_DETAIL_ORIGINAL: Detail.HIGH,  # the model's own maximum is the service's
}

_DEFAULT_FPS: Final = 2.0
_FPS: Final = Range(1e-3, 1000)
_MAX_NAME_BYTES: Final = 64
_MAX_UUID_BYTES: Final = 256
_MAX_CALL_ID_BYTES: Final = 256
_MAX_CALLS: Final = 128


def chat_messages(messages: Sequence[message_pb.Message]) -> tuple[ChatMessage, ...]:
    """Validates a conversation; the results of each turn come in the order of its calls, wherever they are in it.

    Raises:
        InvalidArgumentError: A field is invalid; `field` is its path, with the message's index in `messages`.
        UnsupportedParameterError: A field is known but not supported.
    """
    check_calls(messages)
    checked = [
        _chat_message(message, f"spec.messages[{index}]") for index, message in enumerate(messages)
    ]
    return tuple(checked[index] for index in messages_in_order(messages))


def _chat_message(message: message_pb.Message, path: str) -> ChatMessage:
    role = _ROLES.get(message.role)
    if role is None:
        raise InvalidArgumentError(
            f"role is {message.role}, but must be ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT or ROLE_TOOL.",
            field=f"{path}.role",
        )
    _check_role_fields(message, role, path)
    if not message.parts and role not in (Role.ASSISTANT, Role.TOOL):
        raise InvalidArgumentError(
            "The message has no parts, but at least one is required.", field=f"{path}.parts"
        )
    check_bytes(message.name, _MAX_NAME_BYTES, f"{path}.name")
    parts = tuple(
        _part(part, role, f"{path}.parts[{index}]") for index, part in enumerate(message.parts)
    )
    calls = tuple(
        tool_call(call, f"{path}.tool_calls[{index}]")
        for index, call in enumerate(message.tool_calls)
    )
    # An empty answer or result, as if it were the empty text.
    return ChatMessage(
        role=role,
        parts=parts or (TextPart(text=""),),
        name=message.name,
        tool_calls=calls,
        reasoning=message.reasoning,
    )


def _check_role_fields(message: message_pb.Message, role: Role, path: str) -> None:
    """Refuses fields that only messages of another role have."""
    fields = {
        "tool_calls": (bool(message.tool_calls), Role.ASSISTANT),
        "reasoning": (bool(message.reasoning), Role.ASSISTANT),
        "tool_call_id": (bool(message.tool_call_id), Role.TOOL),
    }
    for name, (is_set, wanted) in fields.items():
        if is_set and role is not wanted:
            raise InvalidArgumentError(
                f"{name} is set in a message of ROLE_{role.name}, but only messages of ROLE_{wanted.name} have one.",
                field=f"{path}.{name}",
            )
    check_bytes(message.tool_call_id, _MAX_CALL_ID_BYTES, f"{path}.tool_call_id")
    check_count(message.tool_calls, _MAX_CALLS, f"{path}.tool_calls")


def _part(part: message_pb.Part, role: Role, path: str) -> Part:
    match part.WhichOneof("kind"):
        case "text":
            return TextPart(text=part.text)
        case "refusal":
            return TextPart(text=part.refusal)
        case "tool_result":
            if role is not Role.TOOL:
                raise InvalidArgumentError(
                    "Only messages of ROLE_TOOL have a tool_result.", field=f"{path}.tool_result"
                )
            return TextPart(text=part.tool_result.content)
        case "image":
            if role is Role.SYSTEM:
                raise InvalidArgumentError(
                    "Images are not allowed in a system message; send them in a user message.",
                    field=f"{path}.image",
                )
            return image_part(part.image, f"{path}.image")
        case "video":
            if role is Role.SYSTEM:
                raise InvalidArgumentError(
                    "Videos are not allowed in a system message; send them in a user message.",
                    field=f"{path}.video",
                )
            return _video_part(part.video, f"{path}.video")
        case None:
            raise InvalidArgumentError(
                "The part is empty: set text, refusal, image, video or tool_result.", field=path
            )
        case kind:
            raise UnsupportedParameterError(
                f"{kind} is not supported by this service yet.", field=f"{path}.{kind}"
            )


def _video_part(video: message_pb.Video, path: str) -> VideoPart:
    if not video.frames:
        raise InvalidArgumentError(
            "The video has no frames, but at least one is required.", field=f"{path}.frames"
        )
    fps = video.fps if video.HasField("fps") else _DEFAULT_FPS
    check_range(fps, _FPS, f"{path}.fps")
    frames = tuple(
        image_part(frame, f"{path}.frames[{index}]") for index, frame in enumerate(video.frames)
    )
    for frame in frames:
        has_budget = frame.min_pixels or frame.max_pixels or frame.detail is not Detail.AUTO
        if has_budget or frame.rejects_oversized is not None:
            raise UnsupportedParameterError(
                "detail, min_pixels, max_pixels and oversized cannot be set for the frames of a video.",
                field=frame.field,
            )
    return VideoPart(frames=frames, fps=fps, field=path)


def image_part(image: message_pb.Image, path: str) -> ImagePart:
    """Validates an image.

    Raises:
        InvalidArgumentError: A field is invalid; `field` is its path, which begins with `path`.
    """
    source = image.WhichOneof("source")
    if source is None:
        raise InvalidArgumentError(
            "The image has neither data nor uri; set one of them.", field=path
        )
    check_bytes(image.uuid, _MAX_UUID_BYTES, f"{path}.uuid")
    detail = _DETAILS.get(image.detail)
    if detail is None:
        raise InvalidArgumentError(
            f"detail is {image.detail}, but must be IMAGE_DETAIL_AUTO, IMAGE_DETAIL_LOW, IMAGE_DETAIL_HIGH "
            "or IMAGE_DETAIL_ORIGINAL.",
            field=f"{path}.detail",
        )
    return ImagePart(
        data=image.data if source == "data" else None,
        uri=image.uri if source == "uri" else None,
        detail=detail,
        min_pixels=optional_integer(image, "min_pixels", PIXELS, path),
        max_pixels=optional_integer(image, "max_pixels", PIXELS, path),
        rejects_oversized=rejects_oversized(image.oversized, path),
        uuid=image.uuid,
        field=path,
    )
