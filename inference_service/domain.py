"""Requests, before images are decoded and text is tokenised, and the events of their answers, as frozen values.

`field` is the path of a value in the proto (`spec.messages[0].parts[1].image`), so that errors can name it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from inference_service.sampling import Sampling, SamplingOptions


class Role(Enum):
    """Who speaks."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


class Detail(Enum):
    """How much of the pixel budget an image gets."""

    AUTO = "auto"
    LOW = "low"
    HIGH = "high"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPart:
    """A piece of text."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePart:
    """An image as sent: exactly one of `data` and `uri` is set."""

    data: bytes | None = None
    uri: str | None = None
    detail: Detail = Detail.AUTO
    min_pixels: int | None = None
    max_pixels: int | None = None
    uuid: str = ""
    field: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoPart:
    """A video as sent: its frames in order of time, at least one, and how many of them make a second."""

    frames: tuple[ImagePart, ...]
    fps: float = 2.0
    field: str = ""


Media = ImagePart | VideoPart
Part = TextPart | Media


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One turn of a conversation."""

    role: Role
    parts: tuple[Part, ...]
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """What chats and text completions have in common.

    Attributes:
        request_id: Unique among the requests in flight.
        model: Canonical name.
        sampling: What the caller said about sampling.
        stop_strings: Strings that end an answer.
        stop_token_ids: Token ids that end an answer.
        include_stop_string: Keep the stop string in the text.
        top_logprobs: Likeliest tokens to return for every answer token; None = no log probabilities.
        prompt_logprobs: The same for the prompt.
        n: Number of answers.
        return_token_ids: Return the ids of the answers.
        return_prompt_token_ids: Return the ids of the prompt.
        return_prompt_text: Return the text of the prompt.
        keep_special_tokens: Keep special tokens in the text.
        grounding: Read the boxes of the answers.
        min_pixels: Pixel budget of images that name none.
        max_pixels: Pixel budget of images that name none.
        cache_salt: Caches are shared only among equal salts.
    """

    request_id: str
    model: str
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_string: bool = False
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1
    return_token_ids: bool = False
    return_prompt_token_ids: bool = False
    return_prompt_text: bool = False
    keep_special_tokens: bool = False
    grounding: bool = False
    min_pixels: int | None = None
    max_pixels: int | None = None
    cache_salt: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest(GenerationOptions):
    """A validated request of ChatService.

    Attributes:
        messages: The conversation, oldest first.
        add_generation_prompt: Open an assistant turn after the last message.
        continue_final_message: Continue the last message instead.
        enable_thinking: For templates that know it; None = the template's default.
    """

    messages: tuple[ChatMessage, ...]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    enable_thinking: bool | None = None

    @property
    def media(self) -> tuple[Media, ...]:
        """Images and videos in order of appearance."""
        return tuple(
            part
            for message in self.messages
            for part in message.parts
            if not isinstance(part, TextPart)
        )

    @property
    def prompt_field(self) -> str:
        """What errors about the whole prompt name."""
        return "spec.messages"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextCompletionRequest(GenerationOptions):
    """A validated request of CompletionService.

    Attributes:
        prompt: Text as the model reads it, or token ids.
        images: In the order of their places in the prompt.
    """

    prompt: str | tuple[int, ...]
    images: tuple[ImagePart, ...] = ()

    @property
    def media(self) -> tuple[Media, ...]:
        """The images; text completions have no videos."""
        return self.images

    @property
    def prompt_field(self) -> str:
        """What errors about the whole prompt name."""
        return "spec.text" if isinstance(self.prompt, str) else "spec.token_ids"


Request = ChatRequest | TextCompletionRequest


class EndReason(Enum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    CONTEXT_LENGTH = "context_length"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True, kw_only=True)
class StopTrigger:
    """What exactly stopped an answer; all unset when its length did."""

    eos_token_id: int | None = None
    stop_token_id: int | None = None
    stop_string: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """A token with its log probability (natural logarithm) and rank (1 = the likeliest)."""

    token_id: int
    text: str
    data: bytes
    logprob: float
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogprobEntry:
    """The chosen token and its rivals, likeliest first; `chosen` is None for the first token of a prompt."""

    chosen: TokenLogprob | None
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """What became of an image: sizes in pixels, and its tokens in the prompt."""

    original_width: int
    original_height: int
    processed_width: int
    processed_height: int
    tokens: int
    uuid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grounding:
    """A box that an answer names, in pixels of an image as decoded; `image_index` counts the prompt's images."""

    label: str
    x_min: float
    y_min: float
    x_max: float
    y_max: float
    image_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUsage:
    """Tokens of a request; those of images, of videos and cached ones are parts of `prompt_tokens`."""

    prompt_tokens: int
    image_tokens: int
    video_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The first event of an answer.

    Attributes:
        request_id: The request's id.
        created: Unix time in seconds.
        sampling: All settings in force; a seed was drawn if none was given.
        stop_strings: Strings that end an answer.
        stop_token_ids: Token ids that end an answer.
        include_stop_string: Keep the stop string in the text.
        n: Number of answers.
        usage: Tokens of the prompt.
        images: In order of appearance.
        prompt_token_ids: The prompt, if asked for.
        prompt_text: Its text, if asked for.
    """

    request_id: str
    created: int
    sampling: Sampling
    stop_strings: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    include_stop_string: bool
    n: int
    usage: TokenUsage
    images: tuple[ImageInfo, ...]
    prompt_token_ids: tuple[int, ...] = ()
    prompt_text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A piece of an answer: whole characters only."""

    choice_index: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[LogprobEntry, ...] = ()
    prompt_logprobs: tuple[LogprobEntry, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The end of one answer."""

    choice_index: int
    reason: EndReason
    trigger: StopTrigger = StopTrigger()
    groundings: tuple[Grounding, ...] = ()


Event = Started | Delta | Finished | TokenUsage
"""One Started, Deltas, one Finished for every answer, and the TokenUsage at the end."""
