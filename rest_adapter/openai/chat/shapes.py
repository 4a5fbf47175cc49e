"""The shapes of chat completions, for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from rest_adapter.openai.shapes import EntryLogprob, ErrorBody, Grounding, PromptLogprobs, Usage


class CallFunction(TypedDict):
    """The function of a call; the arguments are the text of a JSON object."""

    name: NotRequired[str]
    arguments: NotRequired[str | dict[str, Any] | None]


class AskedCall(TypedDict):
    """A call in an earlier answer."""

    id: NotRequired[str | None]
    type: NotRequired[Literal["function"] | None]
    index: NotRequired[int]
    function: CallFunction


class Function(TypedDict):
    """The called function; the arguments are the text of a JSON object."""

    name: str
    arguments: str


class Call(TypedDict):
    """A call of a function."""

    id: str
    type: Literal["function"]
    function: Function


class FunctionPiece(TypedDict):
    """A piece of a call; the name is in its first one."""

    name: NotRequired[str]
    arguments: str


class CallPiece(TypedDict):
    """A piece of a call; id and type are in its first one."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionPiece


class ChatLogprobs(TypedDict):
    """The log probabilities of an answer."""

    content: list[EntryLogprob]
    refusal: None


class AnswerMessage(TypedDict):
    """The message of an answer."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[Call]]


FinishReason = Literal["stop", "length", "tool_calls"]


class ChatChoice(TypedDict):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: str | int | None
    token_ids: NotRequired[list[int]]
    grounding: NotRequired[list[Grounding]]


class ChatCompletion(TypedDict):
    """A complete answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    effective_max_tokens: int
    prompt_token_ids: NotRequired[list[int]]
    prompt_logprobs: NotRequired[PromptLogprobs]


class MessagePiece(TypedDict):
    """A piece of an answer's message."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[CallPiece]]


class ChatChunkChoice(TypedDict):
    """A piece of one answer."""

    index: int
    delta: MessagePiece
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: NotRequired[str | int | None]
    token_ids: NotRequired[list[int]]
    grounding: NotRequired[list[Grounding]]


class ChatCompletionChunk(TypedDict):
    """A piece of a streamed answer; the stream ends with `[DONE]`."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]
    effective_max_tokens: NotRequired[int]
    prompt_token_ids: NotRequired[list[int]]
    prompt_logprobs: NotRequired[PromptLogprobs]


ChatEvent = ChatCompletionChunk | ErrorBody
