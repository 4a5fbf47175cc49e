"""The OpenAI request as it comes over the wire.

Owns names, types and which fields are known, accepted or unsupported. Must not know protobuf; ranges are checked by the
inference service, so that both doors refuse alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from rest_adapter.errors import ApiError, from_reason, invalid


Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]

# Tags begin with '#', so that they can be told from field names in the paths of errors.
_TAG_MARK: Final = "#"


def _shape(value: object) -> str:
    return "#text" if isinstance(value, str) else "#nested"


class _Wire(BaseModel):
    """Base of all objects: unknown keys are kept, so that they can be named in the log."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())

    IGNORED: ClassVar[frozenset[str]] = frozenset()
    """Known keys that make no difference to the answer."""

    def unknown_keys(self) -> Iterator[str]:
        """Names of keys that this version does not know."""
        for name in self.model_extra or ():
            if name not in self.IGNORED:
                yield name


class ImageUrl(_Wire):
    """`image_url` in its usual form."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ContentPart(_Wire):
    """One part of a message; which fields count depends on `type`."""

    IGNORED = frozenset({"prompt_cache_breakpoint"})

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: (
        Annotated[
            Annotated[str, Tag("#text")] | Annotated[ImageUrl, Tag("#nested")],
            Discriminator(_shape),
        ]
        | None
    ) = None
    image: str | None = None
    detail: Literal["auto", "low", "high"] | None = None
    min_pixels: Int64 | None = None
    max_pixels: Int64 | None = None
    uuid: str | None = None


class FunctionCall(_Wire):
    """The function of a call in the history."""

    name: str
    arguments: str


class ToolCall(_Wire):
    """A call in the history."""

    IGNORED = frozenset({"type", "index"})

    id: str
    function: FunctionCall


class ChatMessage(_Wire):
    """One turn."""

    IGNORED = frozenset({"annotations", "audio", "function_call", "reasoning_content", "reasoning"})

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        Annotated[
            Annotated[str, Tag("#text")] | Annotated[list[ContentPart], Tag("#nested")],
            Discriminator(_shape),
        ]
        | None
    ) = None
    name: str | None = None
    refusal: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[ToolCall] | None = None


class StreamOptions(_Wire):
    """What a stream contains besides the answer."""

    IGNORED = frozenset({"include_obfuscation", "continuous_usage_stats"})

    include_usage: bool | None = None


class ChatCompletionRequest(_Wire):
    """Body of `POST /v1/chat/completions`."""

    IGNORED = frozenset(
        {
            "user",
            "metadata",
            "store",
            "service_tier",
            "safety_identifier",
            "prompt_cache_key",
            "prompt_cache_retention",
            "parallel_tool_calls",
        }
    )

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: Int32 | None = None
    max_completion_tokens: Int32 | None = None
    n: Int32 | None = None
    stop: (
        Annotated[
            Annotated[str, Tag("#text")] | Annotated[list[str], Tag("#nested")],
            Discriminator(_shape),
        ]
        | None
    ) = None
    seed: Int64 | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: Int32 | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Extensions, named as in vLLM and SGLang.
    top_k: Int32 | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: Int32 | None = None
    stop_token_ids: list[Int32] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_ids: bool | None = None
    prompt_logprobs: Int32 | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    cache_salt: str | None = None
    request_id: str | None = None

    def unknown_keys(self) -> Iterator[str]:
        """Names of keys that this version does not know, in all objects of the request."""
        unsupported = _UNSUPPORTED.keys()
        yield from (name for name in super().unknown_keys() if name not in unsupported)
        if self.stream_options is not None:
            yield from (f"stream_options.{name}" for name in self.stream_options.unknown_keys())
        for index, message in enumerate(self.messages):
            path = f"messages[{index}]"
            yield from (f"{path}.{name}" for name in message.unknown_keys())
            if isinstance(message.content, list):
                for number, part in enumerate(message.content):
                    yield from (f"{path}.content[{number}].{name}" for name in part.unknown_keys())


def _given(value: object) -> bool:
    """Whether a value asks for something: null, false and empty ask for nothing."""
    return bool(value)


def _no_tool_choice(value: object) -> bool:
    return value not in (None, "none", "auto")


def _not_text(value: object) -> bool:
    return value is not None and value != {"type": "text"}


def _not_only_text(value: object) -> bool:
    return value is not None and value != ["text"]


# Known fields that would change the answer and are not served: never silently ignored.
_UNSUPPORTED: Final = {
    "tools": _given,
    "functions": _given,
    "tool_choice": _no_tool_choice,
    "function_call": _no_tool_choice,
    "response_format": _not_text,
    "modalities": _not_only_text,
    "audio": _given,
    "prediction": _given,
    "web_search_options": lambda value: value is not None,
    "structured_outputs": _given,
    "guided_json": _given,
    "guided_regex": _given,
    "guided_choice": _given,
    "guided_grammar": _given,
    "reasoning_effort": lambda value: value not in (None, "none"),
    "verbosity": lambda value: value not in (None, "medium"),
    "store": _given,
    "bad_words": _given,
    "allowed_token_ids": _given,
    "chat_template": _given,
    "documents": _given,
    "echo": _given,
    "priority": _given,
    "best_of": lambda value: value not in (None, 1),
    "use_beam_search": _given,
    "length_penalty": lambda value: value not in (None, 1, 1.0),
}


def parse_request(body: bytes) -> ChatCompletionRequest:
    """Parses and checks the body of a request.

    orjson refuses invalid UTF-8 and more than 1,024 levels of nesting while it reads, before anything is built deeper.

    Raises:
        ApiError: 400 that names the field.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise invalid("The body is not valid JSON in UTF-8.", None, "invalid_json") from None
    if not isinstance(value, dict):
        raise invalid("The body must be a JSON object.", None, "invalid_type")
    try:
        request = ChatCompletionRequest.model_validate(value)
    except ValidationError as error:
        raise _first_error(error) from None
    for name, asks in _UNSUPPORTED.items():
        if name in value and asks(value[name]):
            raise from_reason(
                "UNSUPPORTED_PARAMETER", f"`{name}` is not supported with this value.", param=name
            )
    return request


def json_path(location: tuple[int | str, ...]) -> str:
    """`("messages", 0, "content", "#nested", 1)` as `messages[0].content[1]`."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not step.startswith(_TAG_MARK):
            path += f".{step}" if path else step
    return path


def _first_error(error: ValidationError) -> ApiError:
    """The first finding; its text never repeats the input."""
    finding = error.errors(include_url=False, include_input=False, include_context=False)[0]
    path = json_path(finding["loc"])
    kind = finding["type"]
    if kind == "missing":
        return invalid(f"`{path}` is required.", path, "missing_required_parameter")
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return invalid(f"`{path}`: {finding['msg']}.", path, code)
