"""Validates proto requests and converts them to domain requests, checking every limit that the proto states."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
import dataclasses
from functools import partial
import re
from typing import Any, Final

from google.protobuf.message import Message as ProtoMessage

from inference_service.domain import (
    ChatMessage,
    ChatRequest,
    Detail,
    GenerationOptions,
    ImagePart,
    Media,
    Part,
    Role,
    TextCompletionRequest,
    TextPart,
    VideoPart,
)
from inference_service.errors import (
    InvalidArgumentError,
    TooManyImagesError,
    UnsupportedParameterError,
)
from inference_service.sampling import RANGES, Range, SamplingOptions
from inference_service.settings import ServiceSettings
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import sampling_pb2 as sampling_pb


_ROLES: Final = {
    message_pb.ROLE_SYSTEM: Role.SYSTEM,
    message_pb.ROLE_USER: Role.USER,
    message_pb.ROLE_ASSISTANT: Role.ASSISTANT,
}
_DETAILS: Final = {
    message_pb.IMAGE_DETAIL_UNSPECIFIED: Detail.AUTO,
    message_pb.IMAGE_DETAIL_AUTO: Detail.AUTO,
    message_pb.IMAGE_DETAIL_LOW: Detail.LOW,
    message_pb.IMAGE_DETAIL_HIGH: Detail.HIGH,
}
_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")

_DEFAULT_FPS: Final = 2.0
_FPS: Final = Range(1e-3, 1000)
_PIXELS: Final = Range(1, 2**40)
_LOGPROBS: Final = Range(0, 20)
_TOKEN_ID: Final = Range(0, 2**31 - 1)
_BIAS: Final = Range(-100, 100)
_MAX_STOP_STRINGS: Final = 4
_MAX_STOP_BYTES: Final = 256
_MAX_STOP_TOKENS: Final = 64
_MAX_LOGIT_BIAS: Final = 300
_MAX_NAME_BYTES: Final = 64
_MAX_UUID_BYTES: Final = 256
_MAX_SALT_BYTES: Final = 128


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
    _refuse_unsupported(spec)
    messages = tuple(
        _message(message, f"spec.messages[{index}]") for index, message in enumerate(spec.messages)
    )
    if not messages:
        raise InvalidArgumentError(
            "messages is empty, but at least one message is required.", field="spec.messages"
        )
    opens, continues = _final_turn(spec.template, messages)
    request = ChatRequest(
        messages=messages,
        add_generation_prompt=opens,
        continue_final_message=continues,
        enable_thinking=_optional(spec.template, "enable_thinking"),
        **_fields(_options(spec, model, fallback_id, settings)),
    )
    _check_images(request.media, "spec.messages", settings)
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
    prompt: str | tuple[int, ...] = spec.text if kind == "text" else tuple(spec.token_ids.ids)
    if not prompt:
        raise InvalidArgumentError(
            f"{kind} is empty, but a prompt of at least one token is required.", field=field
        )
    if not isinstance(prompt, str):
        _check_range(min(prompt), _TOKEN_ID, field)
    images = tuple(
        _image(image, f"spec.images[{index}]") for index, image in enumerate(spec.images)
    )
    _check_images(images, "spec.images", settings)
    options = _options(spec, model, fallback_id, settings)
    return TextCompletionRequest(prompt=prompt, images=images, **_fields(options))


def _options(
    spec: chat_pb.ChatCompletionSpec | completion_pb.CompletionSpec,
    model: str,
    fallback_id: str,
    settings: ServiceSettings,
) -> GenerationOptions:
    """The options that both kinds of requests share."""
    n = spec.n if spec.HasField("n") else 1
    _check_range(n, Range(1, settings.max_n), "spec.n", setting="--max-n")
    # Each option that is named like the field it asks for is the deprecated spelling of the other.
    return GenerationOptions(
        request_id=_request_id(spec.request_id or fallback_id),
        model=model,
        sampling=_sampling(spec.sampling),
        stop_strings=_stop_strings(spec.stop.strings),
        stop_token_ids=_stop_tokens(spec.stop.token_ids),
        include_stop_string=spec.stop.include_stop_string,
        top_logprobs=_integer(spec.logprobs, "top_logprobs", _LOGPROBS, "spec.logprobs"),
        prompt_logprobs=_integer(spec.logprobs, "prompt_logprobs", _LOGPROBS, "spec.logprobs"),
        n=n,
        return_token_ids=spec.response.return_token_ids or spec.response.token_ids,
        return_prompt_token_ids=(
            spec.response.return_prompt_token_ids or spec.response.prompt_token_ids
        ),
        return_prompt_text=spec.response.return_prompt_text or spec.response.prompt_text,
        keep_special_tokens=spec.response.keep_special_tokens,
        grounding=spec.response.grounding,
        min_pixels=_integer(spec.media, "min_pixels", _PIXELS, "spec.media"),
        max_pixels=_integer(spec.media, "max_pixels", _PIXELS, "spec.media"),
        cache_salt=_cache_salt(spec.cache_salt),
    )


def _fields(options: GenerationOptions) -> dict[str, Any]:
    """The fields as arguments for the constructor of a subclass."""
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}


def _check_images(media: Sequence[Media], field: str, settings: ServiceSettings) -> None:
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


def _refuse_unsupported(spec: chat_pb.ChatCompletionSpec) -> None:
    refused = {
        "spec.constraint": spec.HasField("constraint"),
        "spec.tools": bool(spec.tools),
        "spec.tool_choice": spec.tool_choice.WhichOneof("choice") == "function_name"
        or spec.tool_choice.mode == message_pb.TOOL_CHOICE_MODE_REQUIRED,
    }
    for field, asked in refused.items():
        if asked:
            name = field.rpartition(".")[2]
            raise UnsupportedParameterError(
                f"{name} is not supported by this service yet.", field=field
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
    if opens:
        raise InvalidArgumentError(
            "add_generation_prompt and continue_final_message cannot both be set.", field=field
        )
    return False, True


def _message(message: message_pb.Message, path: str) -> ChatMessage:
    of_tools = {
        "role": message.role == message_pb.ROLE_TOOL,
        "tool_calls": bool(message.tool_calls),
        "tool_call_id": bool(message.tool_call_id),
    }
    for name, used in of_tools.items():
        if used:
            raise UnsupportedParameterError(
                "Tools are not supported by this service yet.", field=f"{path}.{name}"
            )
    role = _ROLES.get(message.role)
    if role is None:
        raise InvalidArgumentError(
            f"role is {message.role}, but must be ROLE_SYSTEM, ROLE_USER or ROLE_ASSISTANT.",
            field=f"{path}.role",
        )
    if not message.parts:
        raise InvalidArgumentError(
            "The message has no parts, but at least one is required.", field=f"{path}.parts"
        )
    _check_bytes(message.name, _MAX_NAME_BYTES, f"{path}.name")
    parts = tuple(
        _part(part, role, f"{path}.parts[{index}]") for index, part in enumerate(message.parts)
    )
    return ChatMessage(role=role, parts=parts, name=message.name)


def _part(part: message_pb.Part, role: Role, path: str) -> Part:
    match part.WhichOneof("kind"):
        case "text":
            return TextPart(text=part.text)
        case "refusal":
            return TextPart(text=part.refusal)
        case "image":
            if role is Role.SYSTEM:
                raise InvalidArgumentError(
                    "Images are not allowed in a system message; send them in a user message.",
                    field=f"{path}.image",
                )
            return _image(part.image, f"{path}.image")
        case "video":
            if role is Role.SYSTEM:
                raise InvalidArgumentError(
                    "Videos are not allowed in a system message; send them in a user message.",
                    field=f"{path}.video",
                )
            return _video(part.video, f"{path}.video")
        case None:
            raise InvalidArgumentError(
                "The part is empty: set text, refusal, image or video.", field=path
            )
        case kind:
            raise UnsupportedParameterError(
                f"{kind} is not supported by this service yet.", field=f"{path}.{kind}"
            )


def _video(video: message_pb.Video, path: str) -> VideoPart:
    if not video.frames:
        raise InvalidArgumentError(
            "The video has no frames, but at least one is required.", field=f"{path}.frames"
        )
    fps = video.fps if video.HasField("fps") else _DEFAULT_FPS
    _check_range(fps, _FPS, f"{path}.fps")
    frames = tuple(
        _image(frame, f"{path}.frames[{index}]") for index, frame in enumerate(video.frames)
    )
    for frame in frames:
        if frame.min_pixels or frame.max_pixels or frame.detail is not Detail.AUTO:
            raise UnsupportedParameterError(
                "detail, min_pixels and max_pixels cannot be set for the frames of a video.",
                field=frame.field,
            )
    return VideoPart(frames=frames, fps=fps, field=path)


def _image(image: message_pb.Image, path: str) -> ImagePart:
    source = image.WhichOneof("source")
    if source is None:
        raise InvalidArgumentError(
            "The image has neither data nor uri; set one of them.", field=path
        )
    _check_bytes(image.uuid, _MAX_UUID_BYTES, f"{path}.uuid")
    detail = _DETAILS.get(image.detail)
    if detail is None:
        raise InvalidArgumentError(
            f"detail is {image.detail}, but must be IMAGE_DETAIL_AUTO, IMAGE_DETAIL_LOW or IMAGE_DETAIL_HIGH.",
            field=f"{path}.detail",
        )
    return ImagePart(
        data=image.data if source == "data" else None,
        uri=image.uri if source == "uri" else None,
        detail=detail,
        min_pixels=_integer(image, "min_pixels", _PIXELS, path),
        max_pixels=_integer(image, "max_pixels", _PIXELS, path),
        uuid=image.uuid,
        field=path,
    )


def _sampling(options: sampling_pb.SamplingOptions) -> SamplingOptions:
    sampling = SamplingOptions.read(partial(_optional, options))
    for name, limits in RANGES.items():
        _check_range(_optional(options, name), limits, f"spec.sampling.{name}")
    low, high = sampling.min_tokens, sampling.max_tokens
    if low is not None and high is not None and low > high:
        raise InvalidArgumentError(
            f"min_tokens is {low}, but must not exceed max_tokens, which is {high}.",
            field="spec.sampling.min_tokens",
        )
    path = "spec.sampling.logit_bias"
    _check_count(options.logit_bias, _MAX_LOGIT_BIAS, path)
    for token_id, bias in options.logit_bias.items():
        _check_range(token_id, _TOKEN_ID, path)
        _check_range(bias, _BIAS, path)
    return dataclasses.replace(sampling, logit_bias=tuple(sorted(options.logit_bias.items())))


def _stop_strings(strings: Iterable[str]) -> tuple[str, ...]:
    kept, path = tuple(strings), "spec.stop.strings"
    _check_count(kept, _MAX_STOP_STRINGS, path)
    for index, string in enumerate(kept):
        size = len(string.encode())
        if not 1 <= size <= _MAX_STOP_BYTES:
            raise InvalidArgumentError(
                f"stop.strings[{index}] has {size} bytes, but must have 1 to {_MAX_STOP_BYTES}.",
                field=path,
            )
    return kept


def _stop_tokens(token_ids: Iterable[int]) -> tuple[int, ...]:
    kept, path = tuple(token_ids), "spec.stop.token_ids"
    _check_count(kept, _MAX_STOP_TOKENS, path)
    for token_id in kept:
        _check_range(token_id, _TOKEN_ID, path)
    return kept


def _request_id(text: str) -> str:
    if not _REQUEST_ID.fullmatch(text):
        raise InvalidArgumentError(
            "request_id must have 1 to 128 printable ASCII characters and no spaces.",
            field="spec.request_id",
        )
    return text


def _cache_salt(text: str) -> bytes:
    _check_bytes(text, _MAX_SALT_BYTES, "spec.cache_salt")
    return text.encode()


def _integer(message: ProtoMessage, name: str, limits: Range, path: str) -> int | None:
    value: int | None = _optional(message, name)
    _check_range(value, limits, f"{path}.{name}")
    return value


def _optional(message: ProtoMessage, name: str) -> Any:
    """The value of a field with presence, or None."""
    return getattr(message, name) if message.HasField(name) else None


def _check_range(value: float | None, limits: Range, field: str, *, setting: str = "") -> None:
    if value is not None and value not in limits:
        minimum, maximum = _plain(limits.minimum), _plain(limits.maximum)
        origin = setting and f" ({setting})"
        raise InvalidArgumentError(
            f"{_name(field)} is {_plain(value)}, but must be between {minimum} and {maximum}{origin}.",
            field=field,
        )


def _check_count(items: Sized, maximum: int, field: str) -> None:
    if len(items) > maximum:
        raise InvalidArgumentError(
            f"{_name(field)} has {len(items)} entries, but at most {maximum} are allowed.",
            field=field,
        )


def _check_bytes(text: str, maximum: int, field: str) -> None:
    size = len(text.encode())
    if size > maximum:
        raise InvalidArgumentError(
            f"{_name(field)} has {size} bytes, but at most {maximum} are allowed.", field=field
        )


def _name(field: str) -> str:
    """The last component of a path; with its parent in `stop`, where it alone is ambiguous."""
    parent, _, name = field.rpartition(".")
    return f"{parent.rpartition('.')[2]}.{name}" if parent.endswith(".stop") else name


def _plain(number: float) -> str:
    return repr(number).removesuffix(".0")
