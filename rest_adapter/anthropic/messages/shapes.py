"""The shapes of Anthropic's messages, for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from rest_adapter.rendered_shapes import Rendered


class MessagesErrorDetails(TypedDict):
    """What a client needs in order to send something else."""

    error_code: str
    max_side_length_pixels: NotRequired[int]
    paths: NotRequired[list[str]]


class MessagesErrorFields(TypedDict):
    """What is wrong with a request."""

    type: str
    message: str
    details: NotRequired[MessagesErrorDetails]


class MessagesError(TypedDict):
    """The body of every error."""

    type: Literal["error"]
    error: MessagesErrorFields
    request_id: str | None


class ThinkingDetails(TypedDict):
    """The tokens of an answer that are reasoning."""

    thinking_tokens: int


class MessageUsage(TypedDict):
    """The tokens of a request; its prompt is the sum of the three kinds of input tokens."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: ThinkingDetails


class RenderedMessages(Rendered):
    """The prompt of a conversation, exactly as generation would use it."""

    usage: MessageUsage


class AnsweredText(TypedDict):
    """A text."""

    type: Literal["text"]
    text: str


class AnsweredThinking(TypedDict):
    """Reasoning."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class AnsweredToolUse(TypedDict):
    """A call of a tool."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


AnsweredBlock = AnsweredText | AnsweredThinking | AnsweredToolUse
StopReason = Literal[
    "end_turn", "max_tokens", "model_context_window_exceeded", "stop_sequence", "tool_use"
]


class AnsweredMessage(TypedDict):
    """An answer."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnsweredBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


class MessageStart(TypedDict):
    """The answer begins."""

    type: Literal["message_start"]
    message: AnsweredMessage


class Ping(TypedDict):
    """Nothing new yet."""

    type: Literal["ping"]


class BlockStart(TypedDict):
    """A block begins."""

    type: Literal["content_block_start"]
    index: int
    content_block: AnsweredBlock


class BlockPiece(TypedDict):
    """What is new in a block: one of the four texts, as the type says."""

    type: Literal["text_delta", "thinking_delta", "signature_delta", "input_json_delta"]
    text: NotRequired[str]
    thinking: NotRequired[str]
    signature: NotRequired[str]
    partial_json: NotRequired[str]


class BlockDelta(TypedDict):
    """A piece of a block."""

    type: Literal["content_block_delta"]
    index: int
    delta: BlockPiece


class BlockStop(TypedDict):
    """A block ends."""

    type: Literal["content_block_stop"]
    index: int


class MessageEnd(TypedDict):
    """Why the answer ends."""

    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(TypedDict):
    """The answer ends."""

    type: Literal["message_delta"]
    delta: MessageEnd
    usage: MessageUsage


class MessageStop(TypedDict):
    """The last event."""

    type: Literal["message_stop"]


MessageEvent = (
    MessageStart
    | Ping
    | BlockStart
    | BlockDelta
    | BlockStop
    | MessageDelta
    | MessageStop
    | MessagesError
)


class TokenCount(TypedDict):
    """The number of tokens of a conversation."""

    input_tokens: int
