"""The shapes of responses, for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from rest_adapter.openai.shapes import (
    Content,
    EntryLogprob,
    FlatAllowed,
    FlatChoice,
    ImageObject,
    InputUsage,
    Mode,
    Transformations,
)


Status = Literal["completed", "incomplete", "in_progress", "cancelled", "failed", "queued"]


class FormatObject(TypedDict):
    """The form of the text."""

    type: Literal["text", "json_object", "json_schema"]
    name: NotRequired[str | None]
    description: NotRequired[str | None]
    schema: NotRequired[dict[str, Any]]
    strict: NotRequired[bool | None]


class InputMessage(TypedDict):
    """A message."""

    type: NotRequired[Literal["message"]]
    role: Literal["user", "system", "developer", "assistant"]
    content: Content
    id: NotRequired[str | None]
    status: NotRequired[str | None]
    phase: NotRequired[str | None]


class InputCall(TypedDict):
    """A call of a function by the model."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: NotRequired[str | dict[str, Any] | None]
    id: NotRequired[str | None]
    status: NotRequired[str | None]


class InputCallOutput(TypedDict):
    """What a call returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: Content
    id: NotRequired[str | None]
    status: NotRequired[str | None]


class InputReasoning(TypedDict):
    """The reasoning of an earlier response."""

    type: Literal["reasoning"]
    id: NotRequired[str | None]
    summary: NotRequired[list[dict[str, Any]] | None]
    content: NotRequired[list[dict[str, Any]] | None]
    encrypted_content: NotRequired[str | None]
    status: NotRequired[str | None]


class InputReference(TypedDict):
    """An item of an earlier response."""

    type: NotRequired[Literal["item_reference"]]
    id: str


class Compaction(TypedDict):
    """The summary of a conversation, by this service."""

    type: Literal["compaction"]
    id: NotRequired[str | None]
    encrypted_content: str


ResponseInput = (
    str
    | list[
        InputMessage | InputCall | InputCallOutput | InputReasoning | Compaction | InputReference
    ]
    | None
)
ResponseToolChoice = Mode | FlatChoice | FlatAllowed | None


class ResponseText(TypedDict):
    """A text of the model."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[EntryLogprob]


class ResponseRefusal(TypedDict):
    """A refusal."""

    type: Literal["refusal"]
    refusal: str


class ListedText(TypedDict):
    """A text of the input."""

    type: Literal["input_text"]
    text: str


class ListedImage(TypedDict):
    """An image of the input."""

    type: Literal["input_image"]
    detail: str
    image_url: str | ImageObject | None
    min_pixels: NotRequired[int]
    max_pixels: NotRequired[int]
    uuid: NotRequired[str]
    transformations: NotRequired[Transformations]


class ListedVideo(TypedDict):
    """A video of the input."""

    type: Literal["video"]
    video: list[str]
    fps: NotRequired[float]


ItemPart = ResponseText | ResponseRefusal | ListedText | ListedImage | ListedVideo


class MessageItem(TypedDict):
    """A message."""

    id: str
    type: Literal["message"]
    status: Status
    role: Literal["user", "system", "developer", "assistant"]
    content: list[ItemPart]


class ReasoningPart(TypedDict):
    """A piece of reasoning."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(TypedDict):
    """Reasoning, as it is in `content`, or as a summary."""

    id: str
    type: Literal["reasoning"]
    status: Status
    summary: list[ReasoningPart]
    content: NotRequired[list[ReasoningPart]]
    encrypted_content: NotRequired[str]


class CallItem(TypedDict):
    """A call of a function; the arguments are the text of a JSON object."""

    id: str
    type: Literal["function_call"]
    status: Status
    call_id: str
    name: str
    arguments: str


class CallOutputItem(TypedDict):
    """What a call returned."""

    id: str
    type: Literal["function_call_output"]
    status: Status
    call_id: str
    output: str | list[ItemPart]


OutputItem = MessageItem | ReasoningItem | CallItem
ListedItem = MessageItem | ReasoningItem | CallItem | CallOutputItem | Compaction


class IncompleteDetails(TypedDict):
    """Why a response is incomplete."""

    reason: str


class ResponseFailure(TypedDict):
    """Why a response failed."""

    code: str
    message: str


class ResponseReasoning(TypedDict):
    """How much to reason, and how the reasoning is returned."""

    effort: str | None
    summary: str | None


class ResponseForm(TypedDict):
    """The form of the text."""

    format: FormatObject
    verbosity: str


class ResponseFunction(TypedDict):
    """A function that the model may call."""

    type: Literal["function"]
    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool | None


class ResponseObject(TypedDict):
    """A response."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Status
    background: bool
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: ResponseReasoning
    safety_identifier: str | None
    service_tier: str
    store: bool
    temperature: float
    text: ResponseForm
    tool_choice: Mode | FlatChoice | FlatAllowed
    tools: list[ResponseFunction]
    top_logprobs: int
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    truncation: str
    usage: InputUsage | None
    metadata: dict[str, str]
    prompt_cache_retention: NotRequired[str]
    user: NotRequired[str]


class Numbered(TypedDict):
    """What all events have: their place in the stream."""

    sequence_number: int


class ResponseLifecycle(Numbered):
    """The response as it is at its beginning or its end."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    response: ResponseObject


class ResponseItemEvent(Numbered):
    """An item begins or ends."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputItem


class Placed(Numbered):
    """The item that an event is about."""

    item_id: str
    output_index: int


class ResponsePartEvent(Placed):
    """A part of an item begins or ends."""

    type: Literal[
        "response.content_part.added",
        "response.content_part.done",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_part.done",
    ]
    content_index: NotRequired[int]
    summary_index: NotRequired[int]
    part: ItemPart | ReasoningPart


class ResponseDelta(Placed):
    """A piece of a text, of reasoning or of the arguments of a call."""

    type: Literal[
        "response.output_text.delta",
        "response.reasoning_text.delta",
        "response.reasoning_summary_text.delta",
        "response.function_call_arguments.delta",
    ]
    content_index: NotRequired[int]
    summary_index: NotRequired[int]
    delta: str
    logprobs: NotRequired[list[EntryLogprob]]


class ResponseTextDone(Placed):
    """The whole text or reasoning of a part."""

    type: Literal[
        "response.output_text.done",
        "response.reasoning_text.done",
        "response.reasoning_summary_text.done",
    ]
    content_index: NotRequired[int]
    summary_index: NotRequired[int]
    text: str
    logprobs: NotRequired[list[EntryLogprob]]


class ResponseArgumentsDone(Placed):
    """The whole arguments of a call."""

    type: Literal["response.function_call_arguments.done"]
    arguments: str


class NestedError(TypedDict):
    """What went wrong."""

    type: str
    code: str
    message: str
    param: str | None


class ResponseErrorEvent(Numbered):
    """The stream fails; `response.failed` follows."""

    type: Literal["error"]
    error: NestedError
    code: str
    message: str
    param: str | None


ResponseEvent = (
    ResponseLifecycle
    | ResponseItemEvent
    | ResponsePartEvent
    | ResponseDelta
    | ResponseTextDone
    | ResponseArgumentsDone
    | ResponseErrorEvent
)


class InputTokens(TypedDict):
    """The number of tokens of an input."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class CompactedResponse(TypedDict):
    """A conversation with a summary in place of its answers."""

    id: str
    object: Literal["response.compaction"]
    created_at: int
    output: list[ListedItem]
    usage: InputUsage


class DeletedResponse(TypedDict):
    """The response was deleted."""

    id: str
    object: Literal["response"]
    deleted: bool


class InputItems(TypedDict):
    """A page of the items that a response was created from."""

    object: Literal["list"]
    data: list[ListedItem]
    first_id: str
    last_id: str
    has_more: bool
