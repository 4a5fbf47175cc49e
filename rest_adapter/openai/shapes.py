"""The shapes of OpenAI's JSON that several APIs share, for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict


class ErrorFields(TypedDict):
    """What is wrong with a request."""

    message: str
    type: str
    param: str | None
    code: str | None
    request_id: NotRequired[str]


class ErrorBody(TypedDict):
    """The body of every error."""

    error: ErrorFields


class Transformations(TypedDict):
    """What is done to an image that has more pixels than its maximum."""

    oversized_image: NotRequired[Literal["downsize", "error"]]


class ImageObject(TypedDict):
    """An image by its URL, or by its base64 in `data`."""

    url: NotRequired[str]
    data: NotRequired[str]
    media_type: NotRequired[str]
    type: NotRequired[str]
    detail: NotRequired[str | None]
    min_pixels: NotRequired[int | None]
    max_pixels: NotRequired[int | None]
    uuid: NotRequired[str | None]
    transformations: NotRequired[Transformations]


class TextPart(TypedDict):
    """A text."""

    type: NotRequired[Literal["text", "input_text", "output_text"]]
    text: str


class RefusalPart(TypedDict):
    """An earlier refusal of the model."""

    type: NotRequired[Literal["refusal"]]
    refusal: str


class ImagePart(TypedDict):
    """An image, in exactly one of `image_url`, `image`, `url`, `path`, `base64`, `data` and `source`."""

    type: NotRequired[Literal["image_url", "input_image", "image"]]
    image_url: NotRequired[str | ImageObject | None]
    image: NotRequired[str | ImageObject | None]
    url: NotRequired[str | None]
    path: NotRequired[str | None]
    base64: NotRequired[str | None]
    data: NotRequired[str | None]
    source: NotRequired[ImageObject | None]
    mime_type: NotRequired[str | None]
    detail: NotRequired[str | None]
    min_pixels: NotRequired[int | None]
    max_pixels: NotRequired[int | None]
    uuid: NotRequired[str | None]
    transformations: NotRequired[Transformations | None]


class VideoPart(TypedDict):
    """A video as the URLs of its frames."""

    type: NotRequired[Literal["video"]]
    video: list[str]
    fps: NotRequired[float | None]
    sample_fps: NotRequired[float | None]


class ThinkingPart(TypedDict):
    """Reasoning in an earlier answer."""

    type: Literal["thinking", "redacted_thinking", "reasoning"]
    thinking: NotRequired[str]


Part = TextPart | ImagePart | VideoPart | RefusalPart | ThinkingPart
Content = str | Part | list[str | Part] | None
"""The content of a message."""


class FunctionFields(TypedDict):
    """A function that the model may call."""

    name: str
    description: NotRequired[str | None]
    parameters: NotRequired[dict[str, Any] | None]
    strict: NotRequired[bool | None]


class NestedTool(TypedDict):
    """A tool in the form of Chat Completions."""

    type: NotRequired[Literal["function"]]
    function: FunctionFields


class FlatTool(TypedDict):
    """A tool in the form of Responses."""

    type: Literal["function"]
    name: str
    description: NotRequired[str | None]
    parameters: NotRequired[dict[str, Any] | None]
    strict: NotRequired[bool | None]


class NamedFunction(TypedDict):
    """The name of a function."""

    name: str


class NestedChoice(TypedDict):
    """A function that must be called, in the form of Chat Completions."""

    type: NotRequired[Literal["function"]]
    function: NamedFunction


class FlatChoice(TypedDict):
    """A function that must be called, or one of the functions that may be called."""

    type: Literal["function"]
    name: str


class AllowedTools(TypedDict):
    """The functions that may be called."""

    mode: NotRequired[Literal["auto", "required"]]
    tools: list[NestedChoice | FlatChoice]


class NestedAllowed(TypedDict):
    """The functions that may be called, in the form of Chat Completions."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class FlatAllowed(TypedDict):
    """The functions that may be called, in the form of Responses."""

    type: Literal["allowed_tools"]
    mode: NotRequired[Literal["auto", "required"]]
    tools: list[NestedChoice | FlatChoice]


class ModeObject(TypedDict):
    """A mode as an object."""

    type: Literal["none", "auto", "required", "any"]
    disable_parallel_tool_use: NotRequired[bool]


Mode = Literal["none", "auto", "required"]
Tools = list[NestedTool | FlatTool] | None
ToolChoice = (
    Mode
    | Literal["any"]
    | NestedChoice
    | FlatChoice
    | NestedAllowed
    | FlatAllowed
    | ModeObject
    | None
)


class JsonSchemaFormat(TypedDict):
    """A JSON schema with a name."""

    name: NotRequired[str]
    description: NotRequired[str | None]
    schema: NotRequired[dict[str, Any] | str]
    strict: NotRequired[bool | None]


class ResponseFormat(TypedDict):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NotRequired[JsonSchemaFormat | dict[str, Any]]
    schema: NotRequired[dict[str, Any]]


class PromptDetails(TypedDict):
    """The tokens of a prompt by kind; `cached_tokens` came from the cache, `cache_write_tokens` were added to it."""

    audio_tokens: int
    cache_write_tokens: int
    cached_tokens: int
    image_tokens: int
    text_tokens: int
    video_tokens: NotRequired[int]


class AnswerDetails(TypedDict):
    """The tokens of an answer by kind."""

    accepted_prediction_tokens: int
    audio_tokens: int
    reasoning_tokens: int
    rejected_prediction_tokens: int
    text_tokens: int


class Usage(TypedDict):
    """The tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: NotRequired[PromptDetails]
    completion_tokens_details: NotRequired[AnswerDetails]


class CacheDetails(TypedDict):
    """The tokens of the input that came from the cache, and that were added to it."""

    cached_tokens: int
    cache_write_tokens: int


class ReasoningDetails(TypedDict):
    """The tokens of the output that are reasoning."""

    reasoning_tokens: int


class InputUsage(TypedDict):
    """The tokens of a response or of decisions."""

    input_tokens: int
    input_tokens_details: CacheDetails
    output_tokens: int
    output_tokens_details: ReasoningDetails
    total_tokens: int


class TokenLogprob(TypedDict):
    """A token with its log probability."""

    token: str
    bytes: list[int]
    logprob: float


class EntryLogprob(TypedDict):
    """A token of the answer, and the most likely ones at its place."""

    token: str
    bytes: list[int]
    logprob: float
    top_logprobs: list[TokenLogprob]


class PromptLogprob(TypedDict):
    """A token of the prompt with its log probability."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""For every token of the prompt: none, or its own and the most likely ones by their ids."""


class Grounding(TypedDict):
    """A box: left, top, right and bottom in pixels of the decoded image."""

    label: str
    box: list[float]
    image_index: int


class ImageLimits(TypedDict):
    """Limits on images; pixels are areas."""

    max_images: int
    pixel_step: int
    min_pixels: int
    max_pixels: int
    max_decoded_pixels: int
    exif_transposed: bool


class Model(TypedDict):
    """A served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    max_model_len: int
    input_modalities: list[str]
    image_limits: ImageLimits
    features: list[str]


class ModelList(TypedDict):
    """All served models."""

    object: Literal["list"]
    data: list[Model]
