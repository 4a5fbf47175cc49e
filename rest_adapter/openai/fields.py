"""The JSON fields that all requests for an answer have: their types, and what happens to the others.

Numbers are strict: `"0.5"` is not a valid temperature, as with OpenAI.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from rest_adapter.errors import unsupported


Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Float = Annotated[float, Field(allow_inf_nan=False)]

_Item = TypeVar("_Item")
# Without fail-fast a body of millions of wrong items becomes millions of findings.
Items = Annotated[list[_Item], Field(fail_fast=True)]
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
"""Known and not supported, with the values that ask for nothing; null and empty ones always ask for nothing."""


def _few(value: object) -> object:
    if isinstance(value, dict) and len(value) > _MAX_LOGIT_BIAS:
        raise ValueError("too many entries")
    return value


LogitBias = Annotated[dict[str, Float], BeforeValidator(_few)]


class JsonModel(BaseModel):
    """A JSON object whose further fields are kept, to be judged afterwards."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    def unknown(self) -> Mapping[str, object]:
        """The fields that the schema does not name, with their values."""
        return self.__pydantic_extra__ or {}


class StreamOptions(JsonModel):
    """What a stream contains besides the answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ProcessorOptions(BaseModel):
    """Pixel budget of images without their own; a closed list."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    min_pixels: Int64 | None = None
    max_pixels: Int64 | None = None


class AnswerRequest(JsonModel):
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


def unknown_fields(request: AnswerRequest) -> Iterator[str]:
    """The names of fields that are unknown.

    Raises:
        ApiError: A field is known, not supported, and asks for something.
    """
    for name, value in request.unknown().items():
        if name in _NEUTRAL:
            if not is_nothing(value) and value not in _NEUTRAL[name]:
                raise unsupported(name)
        elif name not in _IGNORED:
            yield name


def is_nothing(value: object) -> bool:
    """Whether a field with this value is as if it were absent."""
    return value is None or value in ([], {}, "")


def set_fields(target: Any, source: object, names: Sequence[str]) -> None:
    """Copies the fields of a request that are set into a proto message, where they have the same names."""
    for name in names:
        value = getattr(source, name)
        if value is not None:
            setattr(target, name, value)
