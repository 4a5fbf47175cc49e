"""The request of a caller as the service thinks of it, before pictures are decoded and text is tokenised.

Owns frozen values. Must not know protobuf, HTTP, torch or Pillow.

`field` is the path of a value in the proto (`spec.messages[0].parts[1].image`), so that errors can name it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """Who speaks."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class Detail(Enum):
    """How much of the pixel budget a picture gets."""

    AUTO = "auto"
    LOW = "low"
    HIGH = "high"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPart:
    """A piece of text."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePart:
    """A picture as sent: exactly one of `data` and `uri` is set."""

    data: bytes | None = None
    uri: str | None = None
    detail: Detail = Detail.AUTO
    min_pixels: int | None = None
    max_pixels: int | None = None
    uuid: str = ""
    field: str = ""


Part = TextPart | ImagePart


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One turn of a conversation."""

    role: Role
    parts: tuple[Part, ...]
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """What the caller said about sampling; None = not said."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A validated request of ChatService.

    Attributes:
        request_id: Unique among the requests in flight.
        model: Canonical name.
        messages: The conversation, oldest first.
        sampling: What the caller said about sampling.
        stop_strings: Strings that end an answer.
        stop_token_ids: Token ids that end an answer.
        include_stop_string: Keep the stop string in the text.
        top_logprobs: Likeliest tokens to return for every answer token; None = no log probabilities.
        prompt_logprobs: The same for the prompt.
        n: Number of answers.
        return_token_ids: Return the ids of the answers.
        return_prompt_token_ids: Return the ids of the prompt.
        keep_special_tokens: Keep special tokens in the text.
        add_generation_prompt: Open an assistant turn after the last message.
        continue_final_message: Continue the last message instead.
        enable_thinking: For templates that know it; None = the template's default.
        min_pixels: Pixel budget of pictures that name none.
        max_pixels: Pixel budget of pictures that name none.
        cache_salt: Caches are shared only among equal salts.
    """

    request_id: str
    model: str
    messages: tuple[ChatMessage, ...]
    sampling: SamplingOptions = SamplingOptions()
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_string: bool = False
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1
    return_token_ids: bool = False
    return_prompt_token_ids: bool = False
    keep_special_tokens: bool = False
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    enable_thinking: bool | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    cache_salt: bytes = b""
