"""The JSON of requests: which fields exist, of which type.

Owns types and shapes, and the fate of fields that are not served.

Numbers are strict: `"0.5"` is no temperature, as with OpenAI.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from rest_adapter.errors import ApiError, invalid, unsupported


Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Float = Annotated[float, Field(allow_inf_nan=False)]

_Item = TypeVar("_Item")
# Without fail-fast a body of millions of wrong items becomes millions of findings.
Items = Annotated[list[_Item], Field(fail_fast=True)]
_MAX_FINDINGS: Final = 64
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
"""Known, and without any effect on an answer of this service."""

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
"""Known and not served, with the values that ask for nothing; null and empty ones always do."""

_MESSAGE_NEUTRAL: Final = frozenset(("audio", "function_call", "tool_calls"))
_MESSAGE_IGNORED: Final = frozenset(("annotations", "reasoning", "reasoning_content"))


def _few(value: object) -> object:
    if isinstance(value, dict) and len(value) > _MAX_LOGIT_BIAS:
        raise ValueError("too many entries")
    return value


LogitBias = Annotated[dict[str, Float], BeforeValidator(_few)]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    def unknown(self) -> Mapping[str, object]:
        """The fields that the schema does not name, with their values."""
        return self.__pydantic_extra__ or {}


class ImageUrl(_Model):
    """The object form of `image_url`."""

    url: str
    detail: str | None = None
    min_pixels: Int64 | None = None
    max_pixels: Int64 | None = None


class TextPart(_Model):
    """Text, in the spelling of Chat Completions or of Responses."""

    type: Literal["text", "input_text"]
    text: str


class RefusalPart(_Model):
    """A refusal of an earlier answer."""

    type: Literal["refusal"]
    refusal: str


class ImagePart(_Model):
    """An image; `image_url` for the first two types, `image` as Qwen's own examples write it."""

    type: Literal["image_url", "input_image", "image"]
    image_url: ImageUrl | str | None = None
    image: str | None = None
    detail: str | None = None
    min_pixels: Int64 | None = None
    max_pixels: Int64 | None = None
    uuid: str | None = None


class VideoPart(_Model):
    """A video as the URLs of its frames, as Qwen's own examples write it."""

    type: Literal["video"]
    video: Items[str]
    fps: Float | None = None


Part = Annotated[TextPart | RefusalPart | ImagePart | VideoPart, Field(discriminator="type")]
_PART_TYPES: Final = ("text", "input_text", "refusal", "image_url", "input_image", "image", "video")
_UNSERVED_PARTS: Final = frozenset(("audio_url", "file", "input_audio", "input_file", "video_url"))


class Message(_Model):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Items[Part] | None = None
    name: str | None = None
    refusal: str | None = None


class StreamOptions(_Model):
    """What a stream contains besides the answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ProcessorOptions(BaseModel):
    """Pixel budget of images without their own; a closed list."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    min_pixels: Int64 | None = None
    max_pixels: Int64 | None = None


class TemplateOptions(BaseModel):
    """Switches of the chat template; a closed list, because a template runs them."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    enable_thinking: bool | None = None


class AnswerRequest(_Model):
    """What all requests for an answer have; what is null is as if it were absent."""

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


class ChatRequest(AnswerRequest):
    """A request of `/v1/chat/completions`."""

    messages: Annotated[Items[Message], Field(min_length=1)]
    max_completion_tokens: Int32 | None = None
    logprobs: bool | None = None
    top_logprobs: Int32 | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateOptions | None = None


class CompletionRequest(AnswerRequest):
    """A request of `/v1/completions`: one prompt or several, each as text or as token ids.

    `images` is ours: the images of a single prompt, as URLs, in the order of their places in it.
    """

    prompt: str | Items[str] | Items[Int32] | Items[Items[Int32]]
    images: Items[ImageUrl | str] | None = None
    echo: bool | None = None
    logprobs: Int32 | None = None


_Request = TypeVar("_Request", bound=AnswerRequest)


def parse_chat(document: object) -> tuple[ChatRequest, list[str]]:
    """Checks a parsed JSON document.

    Returns:
        The request, and the paths of fields that nobody knows.

    Raises:
        ApiError: A field has a wrong type, is missing, or is known and not served.
    """
    request, unknown = _parse(ChatRequest, document)
    if request.top_logprobs and not request.logprobs:
        raise invalid("'top_logprobs' needs 'logprobs' to be true.", "top_logprobs")
    for index, message in enumerate(request.messages):
        unknown += _unknown_in_message(message, f"messages[{index}]")
    return request, unknown


def parse_completion(document: object) -> tuple[CompletionRequest, list[str]]:
    """Checks a parsed JSON document; as `parse_chat`."""
    return _parse(CompletionRequest, document)


def _parse(kind: type[_Request], document: object) -> tuple[_Request, list[str]]:
    if not isinstance(document, dict):
        raise invalid("The body must be a JSON object.", None)
    try:
        request = kind.model_validate(document)
    except ValidationError as error:
        raise _of_validation(error, document) from None
    return request, [*_unknown_fields(request)]


def _unknown_fields(request: AnswerRequest) -> Iterator[str]:
    for name, value in request.unknown().items():
        if name in _NEUTRAL:
            if not _is_nothing(value) and value not in _NEUTRAL[name]:
                raise unsupported(name)
        elif name not in _IGNORED:
            yield name


def _unknown_in_message(message: Message, path: str) -> Iterator[str]:
    for name, value in message.unknown().items():
        if name in _MESSAGE_NEUTRAL:
            if not _is_nothing(value):
                raise unsupported(f"{path}.{name}")
        elif name not in _MESSAGE_IGNORED:
            yield f"{path}.{name}"
    if isinstance(message.content, list):
        for position, part in enumerate(message.content):
            yield from (f"{path}.content[{position}].{name}" for name in part.unknown())


def _is_nothing(value: object) -> bool:
    return value is None or value in ([], {}, "")


def _of_validation(error: ValidationError, document: Mapping[str, Any]) -> ApiError:
    """The deepest finding as the caller wrote the field; pydantic's names of union branches are not part of it."""
    findings = error.errors(include_url=False, include_context=False, include_input=False)
    located = [(_walk(finding["loc"], document), finding) for finding in findings[:_MAX_FINDINGS]]
    # Of the branches of a union the one that got deepest is the one that the caller meant.
    location, first = max(located, key=lambda pair: len(pair[0]))
    param = _join(location)
    kind = first["type"]
    value = _value_at(location, document)
    if kind == "literal_error" and location[-1] == "role" and value in ("tool", "function"):
        return invalid(f"The role '{value}' is not supported.", param, "unsupported_parameter")
    if kind.startswith("union_tag"):
        tag = value.get("type") if isinstance(value, dict) else None
        if isinstance(tag, str) and tag in _UNSERVED_PARTS:
            return invalid(f"'{tag}' parts are not supported.", param, "unsupported_parameter")
        return invalid(f"'type' must be one of {', '.join(_PART_TYPES)}.", f"{param}.type")
    if kind == "extra_forbidden":
        return unsupported(param)
    if kind == "missing":
        return invalid(f"'{param}' is missing.", param, "missing_required_parameter")
    return invalid(f"'{param}': {first['msg']}.", param)


def _walk(location: Sequence[int | str], document: object) -> list[int | str]:
    """The steps of a pydantic location that are steps in the document, too."""
    steps: list[int | str] = []
    value: object = document
    for position, step in enumerate(location):
        last = position == len(location) - 1
        behind_index = position > 0 and isinstance(location[position - 1], int)
        if behind_index and isinstance(value, dict) and step == value.get("type"):
            continue  # the tag by which pydantic chose among parts; a part may have a key of this name
        if isinstance(step, int) and isinstance(value, list) and step < len(value):
            value = value[step]
        elif isinstance(step, str) and isinstance(value, dict) and (step in value or last):
            value = value.get(step)
        else:
            continue
        steps.append(step)
    return steps


def _value_at(steps: Sequence[int | str], document: Any) -> Any:
    value = document
    for step in steps:
        value = value[step] if isinstance(step, int) else value.get(step)
    return value


def _join(steps: Sequence[int | str]) -> str:
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return path.removeprefix(".")
