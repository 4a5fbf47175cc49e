"""From the request's proto to the domain, checking every limit that the proto's comments state.

Owns these limits and the names of fields in errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import re
from typing import Any, Final

from google.protobuf.message import Message as ProtoMessage

from inference_service.domain import (
    ChatMessage,
    ChatRequest,
    Detail,
    ImagePart,
    Media,
    Part,
    Role,
    SamplingOptions,
    TextCompletionRequest,
    TextPart,
    VideoPart,
)
from inference_service.errors import (
    InvalidArgumentError,
    TooManyImagesError,
    UnsupportedParameterError,
)
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

# name -> (least, greatest); `top_p` and `repetition_penalty` are above 0.
_RANGES: Final = {
    "temperature": (0.0, 2.0),
    "top_p": (1e-9, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1e-3, 10.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "top_k": (-1, 2**31 - 1),
    "max_tokens": (1, 2**31 - 1),
    "min_tokens": (0, 2**31 - 1),
    "seed": (-(2**63), 2**63 - 1),
}
_LEAST_FPS: Final = 1e-3
_GREATEST_FPS: Final = 1000.0
_MAX_STOP_STRINGS: Final = 4
_MAX_STOP_BYTES: Final = 256
_MAX_STOP_TOKENS: Final = 64
_MAX_LOGPROBS: Final = 20
_MAX_LOGIT_BIAS: Final = 300
_MAX_TOKEN_ID: Final = 2**31 - 1


def chat_request(
    spec: chat_pb.ChatCompletionSpec, model: str, fallback_id: str, settings: ServiceSettings
) -> ChatRequest:
    """Validates a request.

    Args:
        spec: The request; its `model` was resolved by the caller.
        model: Canonical name of the model.
        fallback_id: Id of the request where it names none.
        settings: Limits that operators set.

    Raises:
        InvalidArgumentError: A field is wrong; `field` is its path, beginning with `spec`.
        UnsupportedParameterError: A field is known but cannot be served.
    """
    _refuse_unsupported(spec)
    messages = tuple(
        _message(message, f"spec.messages[{index}]") for index, message in enumerate(spec.messages)
    )
    if not messages:
        raise InvalidArgumentError("At least one message is needed.", field="spec.messages")
    opens, continues = _final_turn(spec.template, messages)
    request = ChatRequest(
        messages=messages,
        add_generation_prompt=opens,
        continue_final_message=continues,
        enable_thinking=_optional(spec.template, "enable_thinking"),
        **_common(spec, model, fallback_id, settings),
    )
    _check_images(request.media, "spec.messages", settings)
    return request


def text_completion_request(
    spec: completion_pb.CompletionSpec, model: str, fallback_id: str, settings: ServiceSettings
) -> TextCompletionRequest:
    """Validates a request to continue a raw prompt; arguments and errors as `chat_request`."""
    kind = spec.WhichOneof("prompt")
    if kind is None:
        raise InvalidArgumentError("A prompt is needed.", field="spec.text")
    field = f"spec.{kind}"
    prompt: str | tuple[int, ...] = spec.text if kind == "text" else tuple(spec.token_ids.ids)
    if not prompt:
        raise InvalidArgumentError("The prompt is empty.", field=field)
    if not isinstance(prompt, str):
        _within(min(prompt), 0, _MAX_TOKEN_ID, field)
    images = tuple(
        _image(image, f"spec.images[{index}]") for index, image in enumerate(spec.images)
    )
    _check_images(images, "spec.images", settings)
    return TextCompletionRequest(
        prompt=prompt, images=images, **_common(spec, model, fallback_id, settings)
    )


def _common(
    spec: chat_pb.ChatCompletionSpec | completion_pb.CompletionSpec,
    model: str,
    fallback_id: str,
    settings: ServiceSettings,
) -> dict[str, Any]:
    """The fields that both kinds of requests have."""
    top_logprobs = _optional(spec.logprobs, "top_logprobs")
    prompt_logprobs = _optional(spec.logprobs, "prompt_logprobs")
    _within(top_logprobs, 0, _MAX_LOGPROBS, "spec.logprobs.top_logprobs")
    _within(prompt_logprobs, 0, _MAX_LOGPROBS, "spec.logprobs.prompt_logprobs")
    n = spec.n if spec.HasField("n") else 1
    _within(n, 1, settings.max_n, "spec.n")
    return {
        "request_id": _request_id(spec.request_id or fallback_id),
        "model": model,
        "sampling": _sampling(spec.sampling),
        "stop_strings": _stop_strings(spec.stop.strings),
        "stop_token_ids": _stop_tokens(spec.stop.token_ids),
        "include_stop_string": spec.stop.include_stop_string,
        "top_logprobs": top_logprobs,
        "prompt_logprobs": prompt_logprobs,
        "n": n,
        "return_token_ids": spec.response.token_ids,
        "return_prompt_token_ids": spec.response.prompt_token_ids,
        "return_prompt_text": spec.response.prompt_text,
        "keep_special_tokens": spec.response.keep_special_tokens,
        "grounding": spec.response.grounding,
        "min_pixels": _pixels(spec.media, "min_pixels", "spec.media"),
        "max_pixels": _pixels(spec.media, "max_pixels", "spec.media"),
        "cache_salt": _cache_salt(spec.cache_salt),
    }


def _check_images(media: Sequence[Media], field: str, settings: ServiceSettings) -> None:
    if len(media) > settings.max_images:
        raise TooManyImagesError(
            f"The request has {len(media)} images; at most {settings.max_images} are allowed.",
            field=field,
        )
    for part in media:
        if isinstance(part, VideoPart) and len(part.frames) > settings.max_video_frames:
            raise TooManyImagesError(
                f"The video has {len(part.frames)} frames; at most {settings.max_video_frames} are"
                " allowed.",
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
    """Whether an assistant's turn is opened, and whether the last message is continued instead."""
    opens = template.add_generation_prompt
    if not template.continue_final_message:
        return opens or not template.HasField("add_generation_prompt"), False
    field = "spec.template.continue_final_message"
    if messages[-1].role is not Role.ASSISTANT:
        raise InvalidArgumentError("Only an assistant's message can be continued.", field=field)
    if opens:
        raise InvalidArgumentError(
            "add_generation_prompt and continue_final_message exclude each other.", field=field
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
            raise UnsupportedParameterError("Tools are not supported yet.", field=f"{path}.{name}")
    role = _ROLES.get(message.role)
    if role is None:
        raise InvalidArgumentError("The role is unknown.", field=f"{path}.role")
    if not message.parts:
        raise InvalidArgumentError("The message is empty.", field=f"{path}.parts")
    if len(message.name.encode()) > 64:
        raise InvalidArgumentError("The name has more than 64 bytes.", field=f"{path}.name")
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
                raise InvalidArgumentError("A system message has no images.", field=f"{path}.image")
            return _image(part.image, f"{path}.image")
        case "video":
            if role is Role.SYSTEM:
                raise InvalidArgumentError("A system message has no videos.", field=f"{path}.video")
            return _video(part.video, f"{path}.video")
        case None:
            raise InvalidArgumentError("The part is empty.", field=path)
        case kind:
            raise UnsupportedParameterError(f"{kind} is not supported yet.", field=f"{path}.{kind}")


def _video(video: message_pb.Video, path: str) -> VideoPart:
    if not video.frames:
        raise InvalidArgumentError("The video has no frames.", field=f"{path}.frames")
    fps = video.fps if video.HasField("fps") else 2.0
    _within(fps, _LEAST_FPS, _GREATEST_FPS, f"{path}.fps")
    frames = tuple(
        _image(frame, f"{path}.frames[{index}]") for index, frame in enumerate(video.frames)
    )
    for frame in frames:
        if frame.min_pixels or frame.max_pixels or frame.detail is not Detail.AUTO:
            raise UnsupportedParameterError(
                "The frames of a video have the model's own pixel budget.", field=frame.field
            )
    return VideoPart(frames=frames, fps=fps, field=path)


def _image(image: message_pb.Image, path: str) -> ImagePart:
    source = image.WhichOneof("source")
    if source is None:
        raise InvalidArgumentError("The image has neither data nor uri.", field=path)
    if len(image.uuid.encode()) > 256:
        raise InvalidArgumentError("The uuid has more than 256 bytes.", field=f"{path}.uuid")
    detail = _DETAILS.get(image.detail)
    if detail is None:
        raise InvalidArgumentError("The detail is unknown.", field=f"{path}.detail")
    return ImagePart(
        data=image.data if source == "data" else None,
        uri=image.uri if source == "uri" else None,
        detail=detail,
        min_pixels=_pixels(image, "min_pixels", path),
        max_pixels=_pixels(image, "max_pixels", path),
        uuid=image.uuid,
        field=path,
    )


def _sampling(options: sampling_pb.SamplingOptions) -> SamplingOptions:
    values = {name: _optional(options, name) for name in _RANGES}
    for name, (least, greatest) in _RANGES.items():
        _within(values[name], least, greatest, f"spec.sampling.{name}")
    low, high = values["min_tokens"], values["max_tokens"]
    if low is not None and high is not None and low > high:
        raise InvalidArgumentError(
            "min_tokens is greater than max_tokens.", field="spec.sampling.min_tokens"
        )
    path = "spec.sampling.logit_bias"
    if len(options.logit_bias) > _MAX_LOGIT_BIAS:
        raise InvalidArgumentError(f"At most {_MAX_LOGIT_BIAS} entries are allowed.", field=path)
    for token_id, bias in options.logit_bias.items():
        _within(token_id, 0, _MAX_TOKEN_ID, path)
        _within(bias, -100.0, 100.0, path)
    return SamplingOptions(
        **values,
        ignore_eos=_optional(options, "ignore_eos"),
        logit_bias=tuple(sorted(options.logit_bias.items())),
    )


def _stop_strings(strings: Iterable[str]) -> tuple[str, ...]:
    kept, path = tuple(strings), "spec.stop.strings"
    if len(kept) > _MAX_STOP_STRINGS:
        raise InvalidArgumentError(f"At most {_MAX_STOP_STRINGS} are allowed.", field=path)
    if any(not string or len(string.encode()) > _MAX_STOP_BYTES for string in kept):
        raise InvalidArgumentError(f"Each needs 1 to {_MAX_STOP_BYTES} bytes.", field=path)
    return kept


def _stop_tokens(token_ids: Iterable[int]) -> tuple[int, ...]:
    kept, path = tuple(token_ids), "spec.stop.token_ids"
    if len(kept) > _MAX_STOP_TOKENS:
        raise InvalidArgumentError(f"At most {_MAX_STOP_TOKENS} are allowed.", field=path)
    for token_id in kept:
        _within(token_id, 0, _MAX_TOKEN_ID, path)
    return kept


def _request_id(text: str) -> str:
    if not _REQUEST_ID.fullmatch(text):
        raise InvalidArgumentError(
            "A request id has 1 to 128 printable ASCII characters without spaces.",
            field="spec.request_id",
        )
    return text


def _cache_salt(text: str) -> bytes:
    salt = text.encode()
    if len(salt) > 128:
        raise InvalidArgumentError("The salt has more than 128 bytes.", field="spec.cache_salt")
    return salt


def _pixels(message: ProtoMessage, name: str, path: str) -> int | None:
    value: int | None = _optional(message, name)
    _within(value, 1, 2**40, f"{path}.{name}")
    return value


def _optional(message: ProtoMessage, name: str) -> Any:
    """The value of a field with presence, or None."""
    return getattr(message, name) if message.HasField(name) else None


def _within(value: float | None, least: float, greatest: float, field: str) -> None:
    # Written so that NaN is refused as well.
    if value is not None and not least <= value <= greatest:
        name = field.rpartition(".")[2]
        raise InvalidArgumentError(
            f"{name} must be between {least:g} and {greatest:g}.", field=field
        )
