"""The JSON schema of `/v1/responses`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Literal

from rest_adapter.errors import invalid, unsupported
from rest_adapter.json_model import (
    Count,
    Int32,
    Items,
    JsonModel,
    asks_for_nothing,
    without_neutral_values,
)
from rest_adapter.json_text import shown
from rest_adapter.openai.chat.schema import TemplateOptions
from rest_adapter.openai.fields import AnswerRequest
from rest_adapter.openai.responses import shapes
from rest_adapter.openai.responses.items import AnyItem, read_input
from rest_adapter.openai.responses.text_format import TextFormat, read_format
from rest_adapter.openai.responses.tools import Tools, read_tools
from rest_adapter.openai.shapes import FlatTool
from rest_adapter.openai.validation import parse
from rest_adapter.openapi.operation import Shape
from rest_adapter.validation import wrong


LOGPROBS: Final = "message.output_text.logprobs"
ENCRYPTED_REASONING: Final = "reasoning.encrypted_content"
_INCLUDABLE: Final = (
    LOGPROBS,
    ENCRYPTED_REASONING,
    "message.input_image.image_url",
    # Of tools that OpenAI hosts, none of which is ever called here.
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "web_search_call.action.sources",
    "web_search_call.results",
)
_MAX_METADATA: Final = (16, 64, 512)
_RESPONSES_NEUTRAL: Final = {
    "background_options": "background responses are not supported",
    "context_management": "send what the model is to see",
    "conversation": "use 'previous_response_id', or send the earlier items in 'input'",
    "moderation": "leave it out",
    "personality": "write it in 'instructions'",
    "prompt": "send the text in 'input' and 'instructions'",
    "logprobs": f"set 'include' to [\"{LOGPROBS}\"], and 'top_logprobs'",
    "max_completion_tokens": "use 'max_output_tokens'",
    "messages": "send them in 'input', or to /v1/chat/completions",
    "response_format": "use 'text.format'",
    "reasoning_effort": "use 'reasoning.effort'",
}
"""Fields of this and other APIs that are refused if they ask for something, and what to do instead."""
_NOT_IN_A_RESPONSE: Final = {
    "max_tokens": "use 'max_output_tokens'",
    "grounding": "use /v1/chat/completions",
    "prompt_logprobs": "use /v1/chat/completions",
    "return_token_ids": "use /v1/chat/completions",
}
"""Extensions of the other APIs for which a response has no place."""
_RESPONSES_IGNORED: Final = frozenset(("access_programs", "prompt_cache_options"))


class ReasoningOptions(JsonModel):
    """How much to reason, and how the reasoning is returned; `generate_summary` is the old name of `summary`."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class TextOptions(JsonModel):
    """The form of the text."""

    format: Annotated[Any, Shape(shapes.FormatObject | None)] = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponsesRequest(AnswerRequest):
    """A request of `/v1/responses`; modules of their own read `input`, `tools`, `tool_choice` and `text.format`."""

    input: Annotated[Any, Shape(shapes.ResponseInput)] = None
    instructions: str | None = None
    max_output_tokens: Count | None = None
    top_logprobs: Int32 | None = None
    include: Items[str] | None = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    tools: Annotated[Any, Shape(list[FlatTool] | None)] = None
    tool_choice: Annotated[Any, Shape(shapes.ResponseToolChoice)] = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    truncation: Literal["auto", "disabled"] | None = None
    background: bool | None = None
    max_tool_calls: Int32 | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    service_tier: str | None = None
    user: str | None = None
    image: Annotated[Any, Shape(dict[str, Any] | None)] = None
    chat_template_kwargs: TemplateOptions | None = None
    enable_thinking: bool | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A checked request.

    Attributes:
        request: The fields.
        items: The items of `input`.
        tools: The functions and the choice among them.
        form: The form of the text.
    """

    request: ResponsesRequest
    items: tuple[AnyItem, ...]
    tools: Tools
    form: TextFormat

    @property
    def includes_logprobs(self) -> bool:
        """Whether the text is returned with log probabilities."""
        return LOGPROBS in (self.request.include or ()) or bool(self.request.top_logprobs)

    @property
    def includes_encrypted_reasoning(self) -> bool:
        """Whether reasoning is returned in the form that a caller sends back."""
        return ENCRYPTED_REASONING in (self.request.include or ())

    @property
    def summarises_reasoning(self) -> bool:
        """Whether reasoning is returned as a summary."""
        options = self.request.reasoning
        return options is not None and bool(options.summary or options.generate_summary)


def parse_responses(document: object) -> tuple[Asked, list[str]]:
    """Checks a parsed JSON document.

    Returns:
        The request, and the paths of unknown fields.

    Raises:
        ApiError: A field is missing, has a wrong type, or is known but not supported.
    """
    if isinstance(document, dict):
        _refuse(document)
        _check_metadata(document.get("metadata"))
    request, unknown = parse(ResponsesRequest, document)
    known = {*_RESPONSES_NEUTRAL, *_RESPONSES_IGNORED}
    unknown = [name for name in unknown if name not in known]
    _check_values(request)
    items, unknown_in_items = read_input(request.input)
    tools, unknown_in_tools = read_tools(
        request.tools, request.tool_choice, parallel=request.parallel_tool_calls
    )
    options = request.text or TextOptions()
    form, unknown_in_form = read_format(options.format)
    unknown += unknown_in_items + unknown_in_tools + unknown_in_form
    return Asked(request, tuple(items), tools, form), unknown


def parse_compact(document: object) -> tuple[Asked, list[str]]:
    """As `parse_responses`, but the input may be missing if there is a response to compact."""
    asks_previous = isinstance(document, dict) and document.get("previous_response_id")
    if isinstance(document, dict) and asks_previous and asks_for_nothing(document.get("input")):
        asked, unknown = parse_responses({**document, "input": "-"})
        return replace(asked, items=()), unknown
    return parse_responses(document)


def _refuse(document: dict[str, Any]) -> None:
    for name, value in document.items():
        advice = _RESPONSES_NEUTRAL.get(name) or _NOT_IN_A_RESPONSE.get(name)
        if advice is not None and not asks_for_nothing(without_neutral_values(value)):
            raise unsupported(name, value, advice)


def _check_values(request: ResponsesRequest) -> None:
    for name, value in _unsupported_values(request):
        raise unsupported(name, value)
    for index, name in enumerate(request.include or ()):
        if name not in _INCLUDABLE:
            raise wrong(f"include[{index}]", name, f"one of: {', '.join(_INCLUDABLE)}")


def _check_metadata(metadata: object) -> None:
    """Before the types are checked, as each wrong value would be an error of its own."""
    pairs, name_chars, value_chars = _MAX_METADATA
    if not isinstance(metadata, dict):
        return
    if len(metadata) > pairs:
        raise invalid(f"'metadata' has {len(metadata)} pairs, but at most {pairs}.", "metadata")
    for name, value in metadata.items():
        if len(name) > name_chars or (isinstance(value, str) and len(value) > value_chars):
            limits = f"names have at most {name_chars} characters, and values {value_chars}"
            raise invalid(
                f"'metadata' has a pair that is too long, {shown(name)}: {limits}.", "metadata"
            )


def _unsupported_values(request: ResponsesRequest) -> Iterator[tuple[str, object]]:
    """The fields whose value asks for something that is not served."""
    if request.background:
        yield "background", True
    if request.n not in (None, 1):
        yield "n", request.n
    if request.stream_options is not None and request.stream_options.continuous_usage_stats:
        yield "stream_options.continuous_usage_stats", True
    if request.text is not None and request.text.verbosity not in (None, "medium"):
        yield "text.verbosity", request.text.verbosity
    if isinstance(request.image, dict):
        compression = request.image.get("context_compression")
        if compression not in (None, "auto", "disabled"):
            yield "image.context_compression", compression
    elif not asks_for_nothing(request.image):
        yield "image", request.image
