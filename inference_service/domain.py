"""Validated requests, before media are decoded and text is tokenised, and the events of their answers.

`field` is the path of a value in the proto (`spec.messages[0].parts[1].image`), so that errors can name it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from inference_service.constraint import Constraint
from inference_service.sampling import Sampling, SamplingOptions


class Role(Enum):
    """The role of a message."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


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
    """An image as sent: exactly one of `data` and `uri` is set; options that are None are those of the request."""

    data: bytes | None = None
    uri: str | None = None
    detail: Detail = Detail.AUTO
    min_pixels: int | None = None
    max_pixels: int | None = None
    rejects_oversized: bool | None = None
    uuid: str = ""
    field: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoPart:
    """A video as sent: its frames in chronological order, at least one, and their rate per second."""

    frames: tuple[ImagePart, ...]
    fps: float = 2.0
    field: str = ""


Media = ImagePart | VideoPart
Part = TextPart | Media


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call of a tool in an earlier answer; `arguments` is the JSON text of an object, or empty."""

    name: str
    arguments: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One turn of a conversation.

    Attributes:
        role: The author's role.
        parts: The content.
        name: The author's name.
        tool_calls: The calls of an answer, after its content.
        reasoning: The reasoning of an answer, before its content.
    """

    role: Role
    parts: tuple[Part, ...]
    name: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the model may call.

    Attributes:
        name: Its name.
        description: What it does; may be empty.
        parameters: The JSON schema of its arguments, as JSON text; empty = any object.
        strict: Every call must match the schema.
        enforced: The schema where a grammar can enforce it; empty = it cannot, or need not.
    """

    name: str
    description: str = ""
    parameters: str = ""
    strict: bool = False
    enforced: str = ""


class ToolMode(Enum):
    """Whether the model calls tools.

    Attributes:
        AUTO: It decides.
        NONE: It does not.
        REQUIRED: It calls at least one.
    """

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolChoice:
    """Which tools the model may or must call.

    Attributes:
        mode: Whether it calls tools.
        names: The tools that it may call; the others are in the prompt all the same.
        parallel: One answer may have several calls.
    """

    mode: ToolMode = ToolMode.AUTO
    names: tuple[str, ...] = ()
    parallel: bool = True


EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
"""The reasoning efforts, in ascending order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """The options that chats and text completions share.

    Attributes:
        request_id: Unique among the requests in flight.
        model: Canonical name.
        sampling: Sampling settings of the request.
        stop_strings: Strings that end an answer.
        stop_token_ids: Token ids that end an answer.
        include_stop_string: Keep the stop string in the text.
        top_logprobs: Number of most likely tokens to return for every answer token; None = no log probabilities.
        prompt_logprobs: The same for the prompt.
        constraint: The form that every answer must have.
        constraint_after: The constraint begins after the first token with this id, such as the end of the model's
            reasoning; None = with the first token.
        n: Number of answers.
        return_token_ids: Return the ids of the answers.
        return_prompt_token_ids: Return the ids of the prompt.
        return_prompt_text: Return the text of the prompt.
        keep_special_tokens: Keep special tokens in the text.
        grounding: Parse bounding boxes from the answers.
        min_pixels: Minimum area of images that do not set their own.
        max_pixels: Maximum area of images that do not set their own.
        rejects_oversized: Refuse images with more pixels than their maximum, instead of resizing them.
        cache_salt: Cached prefixes and images are shared only among requests with equal salts.
        priority: Of the requests of one caller, those with the lowest number are computed first.
    """

    request_id: str
    model: str
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_string: bool = False
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    constraint: Constraint | None = None
    constraint_after: int | None = None
    n: int = 1
    return_token_ids: bool = False
    return_prompt_token_ids: bool = False
    return_prompt_text: bool = False
    keep_special_tokens: bool = False
    grounding: bool = False
    min_pixels: int | None = None
    max_pixels: int | None = None
    rejects_oversized: bool = False
    cache_salt: bytes = b""
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest(GenerationOptions):
    """A validated request of ChatService.

    Attributes:
        messages: The conversation, oldest first.
        add_generation_prompt: Open an assistant turn after the last message.
        continue_final_message: Continue the last message instead.
        enable_thinking: For templates that support it; None = the template's default.
        reasoning_effort: One of `EFFORTS`; empty = the template's default.
        prefer_thinking: As `enable_thinking`, which precedes it, for templates with a switch; ignored by others.
        tools: Functions that the model may call.
        tool_choice: Which of them it may or must call.
    """

    messages: tuple[ChatMessage, ...]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    enable_thinking: bool | None = None
    reasoning_effort: str = ""
    prefer_thinking: bool | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()

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
        """The field that errors about the whole prompt name."""
        return "spec.messages"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextCompletionRequest(GenerationOptions):
    """A validated request of CompletionService.

    Attributes:
        prompt: Text without a chat template, or token ids.
        images: Images, in the order of their placeholders in the prompt.
    """

    prompt: str | tuple[int, ...]
    images: tuple[ImagePart, ...] = ()

    @property
    def media(self) -> tuple[Media, ...]:
        """The images; text completions have no videos."""
        return self.images

    @property
    def prompt_field(self) -> str:
        """The field that errors about the whole prompt name."""
        return "spec.text" if isinstance(self.prompt, str) else "spec.token_ids"


Request = ChatRequest | TextCompletionRequest


def forget_files(request: Request) -> None:
    """Drops the image files that a request was sent with: they are decoded and need no memory any more."""
    for part in request.media:
        for image in part.frames if isinstance(part, VideoPart) else (part,):
            if image.data is not None:
                object.__setattr__(image, "data", b"")


class EndReason(Enum):
    """Why an answer ended."""

    STOP = "stop"
    TOOL_CALLS = "tool_calls"
    LENGTH = "length"
    CONTEXT_LENGTH = "context_length"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True, kw_only=True)
class StopTrigger:
    """The token or string that stopped an answer; all unset if it reached its maximum length."""

    eos_token_id: int | None = None
    stop_token_id: int | None = None
    stop_string: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """A token with its log probability (natural logarithm) and rank (1 = the most likely)."""

    token_id: int
    text: str
    data: bytes
    logprob: float
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogprobEntry:
    """The chosen token and the most likely ones, in descending order; `chosen` is None for a prompt's first token.

    With `is_end` the token ended the answer and is no part of its text.
    """

    chosen: TokenLogprob | None
    top: tuple[TokenLogprob, ...] = ()
    is_end: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """The sizes of an image in pixels, as sent and as processed, and its tokens in the prompt."""

    original_width: int
    original_height: int
    processed_width: int
    processed_height: int
    tokens: int
    uuid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grounding:
    """A bounding box in an answer, in pixels of the decoded image; `image_index` counts the prompt's images."""

    label: str
    x_min: float
    y_min: float
    x_max: float
    y_max: float
    image_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUsage:
    """Tokens of a request.

    `prompt_tokens` includes the image and video tokens, those found in the prefix cache (`cached_tokens`) and those
    added to it (`cache_write_tokens`); `completion_tokens` includes those of the reasoning.
    """

    prompt_tokens: int
    image_tokens: int
    video_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The first event of an answer.

    Attributes:
        request_id: The request's id.
        created: Unix time in seconds.
        sampling: The effective settings; a random seed if none was given.
        stop_strings: Strings that end an answer.
        stop_token_ids: Token ids that end an answer.
        include_stop_string: Keep the stop string in the text.
        n: Number of answers.
        usage: Tokens of the prompt.
        images: In order of appearance.
        prompt_token_ids: The prompt, if requested.
        prompt_text: Its text, if requested.
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
class ToolCallDelta:
    """A piece of a tool call.

    Attributes:
        index: Index of the call in the answer.
        id: Its id; only in its first piece.
        name: The function's name; only in its first piece.
        arguments: The next piece of the arguments' JSON text.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A piece of an answer; its text never ends inside a character.

    Of its pieces the reasoning comes first, then the text, then the calls.
    """

    choice_index: int
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
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
