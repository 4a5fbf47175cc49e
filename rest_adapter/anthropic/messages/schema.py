"""The JSON schema of `/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import re
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from qwenvl.limits import MAX_TOOLS
from rest_adapter.anthropic.messages.blocks import (
    IGNORED,
    UNSUPPORTED,
    AssistantMessage,
    Block,
    Message,
    SystemMessage,
    TextBlock,
    ToolResultBlock,
    UserMessage,
)
from rest_adapter.errors import ApiError, invalid, unsupported
from rest_adapter.json_model import (
    ClosedModel,
    Count,
    Float,
    Int32,
    Items,
    JsonModel,
    asks_for_nothing,
    unknown_fields,
    without_neutral_values,
)
from rest_adapter.validation import Finding, check_count, validate, wrong


MIN_BUDGET_TOKENS: Final = 1024

_IGNORED: Final = frozenset(
    (
        "anthropic_beta",
        "anthropic_version",
        "billing_policy",
        "cache_control",
        "diagnostics",
        "fallback_credit_token",
        "inference_geo",
        "metadata",
        "service_tier",
        "speed",
        "user_profile_id",
        "workspace_id",
    )
)
"""Known fields that have no effect on an answer of this service."""

_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    "compaction": (),
    "container": (),
    "fallbacks": (),
    "mcp_servers": (),
    # of the other paths of this service, where they change the answer
    "allowed_token_ids": (),
    "bad_words": (),
    "cache_salt": (),
    "frequency_penalty": (0,),
    "grounding": (),
    "ignore_eos": (),
    "include_stop_str_in_output": (),
    "logit_bias": (),
    "logprobs": (0,),
    "max_pixels": (),
    "min_p": (0,),
    "min_pixels": (),
    "min_tokens": (0,),
    "mm_processor_kwargs": (),
    "n": (1,),
    "presence_penalty": (0,),
    "priority": (0,),
    "prompt_logprobs": (),
    "repeat_penalty": (1,),
    "repetition_penalty": (1,),
    "request_id": (),
    "return_token_ids": (),
    "seed": (),
    "skip_special_tokens": (True,),
    "stop_token_ids": (),
    "top_logprobs": (0,),
}
"""Known but unsupported fields, with the values that have no effect; null, `false` and empty values never have one,
except `false` where `true` is the default."""

_FORM: Final = "send the schema in 'output_config.format'"
_AS_THINKING: Final = "send it as 'thinking'"

_ELSEWHERE: Final = {
    "chat_template_kwargs": _AS_THINKING,
    "enable_thinking": _AS_THINKING,
    "function_call": "send it as 'tool_choice'",
    "functions": "send them as 'tools'",
    **dict.fromkeys(
        ("guided_choice", "guided_grammar", "guided_json", "guided_regex", "regex"), _FORM
    ),
    "max_completion_tokens": "send it as 'max_tokens'",
    "prompt": "send it in 'messages'",
    "reasoning_effort": "send it as 'output_config.effort'",
    "response_format": _FORM,
    "stop": "send it as 'stop_sequences'",
    "structured_outputs": _FORM,
    "thread": "send the whole conversation in 'messages'",
}
"""Fields that would be lost here, of other APIs or with a state at the server, with what to do instead."""

_NEUTRAL_ELSEWHERE: Final[Mapping[str, tuple[object, ...]]] = {
    "function_call": ("none", "auto"),
    "response_format": ("text", {"type": "text"}),
    "stop": ([""],),
}

_IGNORED_OF_TOOLS: Final = frozenset(
    (
        "allowed_callers",
        "cache_control",
        "defer_loading",
        "eager_input_streaming",
        "input_examples",
    )
)
_IGNORED_OF_MESSAGES: Final = frozenset(
    (
        "cache_control",
        "container",
        "id",
        "model",
        "stop_details",
        "stop_reason",
        "stop_sequence",
        "type",
        "usage",
    )
)
"""Fields of an answer, which some clients send back whole, and `cache_control`."""

_CLEAR_THINKING: Final = "clear_thinking_"
_TYPE_OF_TOOL: Final = re.compile(r"tools\[\d+\]\.type")
_TYPE_OF_BLOCK: Final = re.compile(r".*\.type")


class Thinking(JsonModel):
    """Whether the model thinks before it answers; the budget is checked but not enforced."""

    type: Literal["enabled", "adaptive", "between_tools", "disabled"]
    budget_tokens: Count | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(JsonModel):
    """The form of the answer."""

    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(ClosedModel):
    """How much effort the answer gets, and its form."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class ContextEdit(JsonModel):
    """Something that the service shall take out of the conversation."""

    type: str


class ContextManagement(ClosedModel):
    """What to take out of the conversation: only reasoning, about which the chat format decides anyway."""

    edits: Items[ContextEdit] | None = None


class Tool(JsonModel):
    """A tool that the client runs. Its type comes first, as the tools of other types lack the other fields."""

    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


class ToolChoice(JsonModel):
    """Which tool the model may or must call."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class MessagesRequest(JsonModel):
    """A request of `/v1/messages/count_tokens`."""

    model: str
    messages: Annotated[Items[Message], Field(min_length=1)]
    max_tokens: Count | None = None
    system: str | Items[TextBlock] | None = None
    stop_sequences: Items[str] | None = None
    stream: bool | None = None
    temperature: Float | None = None
    top_p: Float | None = None
    top_k: Int32 | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    context_management: ContextManagement | None = None
    tools: Items[Tool] | None = None
    tool_choice: ToolChoice | None = None

    @property
    def only_prompt(self) -> bool:
        """Whether no answer is wanted: the request puts its prompt into the prefix cache."""
        return self.max_tokens == 0

    @property
    def effort(self) -> str | None:
        """How much effort the answer gets; None = the default."""
        return None if self.output_config is None else self.output_config.effort

    @property
    def form(self) -> OutputFormat | None:
        """The form that the answer must have; None = any."""
        return self.output_format or _format_of(self.output_config)


class CreateMessageRequest(MessagesRequest):
    """A request of `/v1/messages`."""

    max_tokens: Count


def parse_messages(document: object) -> tuple[MessagesRequest, list[str]]:
    """Checks a parsed JSON document as a request of `/v1/messages`.

    Returns:
        The request, and the paths of unknown fields.

    Raises:
        ApiError: A field is missing, has a wrong type, or is known but not supported.
    """
    return _parse(CreateMessageRequest, document)


def parse_count(document: object) -> tuple[MessagesRequest, list[str]]:
    """As `parse_messages`, for `/v1/messages/count_tokens`, where `max_tokens` is optional."""
    return _parse(MessagesRequest, document)


def _parse(kind: type[MessagesRequest], document: object) -> tuple[MessagesRequest, list[str]]:
    if isinstance(document, dict):
        check_count("tools", document.get("tools"), MAX_TOOLS)
    request = validate(kind, document, _explain)
    if isinstance(request, CreateMessageRequest) and request.max_tokens < 0:
        # The service would advise to leave it out.
        raise wrong("max_tokens", request.max_tokens, "0 or more")
    _check_thinking(request)
    _check_tool_choice(request)
    _check_edits(request.context_management)
    if request.output_format is not None and _format_of(request.output_config) is not None:
        raise invalid(
            "'output_format' and 'output_config.format' are the same: send one of them.",
            "output_format",
        )
    return request, [*_unknown(request)]


def blocks_of(content: object, path: str) -> list[tuple[Any, str]]:
    """The blocks of a message or of a tool's result with their paths; a text is a block whose path is the content's."""
    if content is None:
        return []
    if isinstance(content, str):
        return [(TextBlock(type="text", text=content), path)]
    assert isinstance(content, list)
    return [(block, f"{path}[{index}]") for index, block in enumerate(content)]


def _explain(finding: Finding) -> ApiError | None:
    value = finding.value
    if _TYPE_OF_TOOL.fullmatch(finding.path):
        return unsupported(
            finding.path, value, "send tools with an 'input_schema', which the client runs"
        )
    if _TYPE_OF_BLOCK.fullmatch(finding.path) and isinstance(value, str) and value in UNSUPPORTED:
        return unsupported(finding.path, value, UNSUPPORTED[value])
    return None


def _check_thinking(request: MessagesRequest) -> None:
    thinking = request.thinking
    if thinking is None or thinking.budget_tokens is None:
        return
    budget, path = thinking.budget_tokens, "thinking.budget_tokens"
    if budget < MIN_BUDGET_TOKENS:
        raise wrong(path, budget, f"{MIN_BUDGET_TOKENS} or more")
    if request.max_tokens is not None and budget >= request.max_tokens:
        raise wrong(path, budget, f"less than 'max_tokens', which is {request.max_tokens}")


def _check_tool_choice(request: MessagesRequest) -> None:
    choice = request.tool_choice
    if choice is None or choice.type in ("auto", "none"):
        return
    names = [tool.name for tool in request.tools or ()]
    if not names:
        raise invalid(
            f"'tool_choice.type' is '{choice.type}', but the request has no 'tools'.",
            "tool_choice.type",
        )
    if choice.type == "tool":
        if choice.name is None:
            raise invalid("'tool_choice.name' is missing.", "tool_choice.name", "MISSING_FIELD")
        if choice.name not in names:
            raise wrong("tool_choice.name", choice.name, "the name of one of the 'tools'")


def _check_edits(management: ContextManagement | None) -> None:
    for index, edit in enumerate((management and management.edits) or ()):
        if not edit.type.startswith(_CLEAR_THINKING):
            path = f"context_management.edits[{index}].type"
            raise unsupported(
                path, edit.type, "leave out of 'messages' what the model need not see"
            )


def _format_of(config: OutputConfig | None) -> OutputFormat | None:
    return None if config is None else config.format


def _unknown(request: MessagesRequest) -> Iterator[str]:
    """The paths of fields that are unknown.

    Raises:
        ApiError: A field is known but not supported, and its value would have an effect.
    """
    for name, value in (request.__pydantic_extra__ or {}).items():
        if name in _ELSEWHERE and not _is_neutral(name, value):
            raise unsupported(name, value, _ELSEWHERE[name])
    yield from unknown_fields(
        request, unsupported_unless=_NEUTRAL, ignored=(*_IGNORED, *_ELSEWHERE)
    )
    for index, tool in enumerate(request.tools or ()):
        yield from unknown_fields(tool, ignored=_IGNORED_OF_TOOLS, path=f"tools[{index}]")
    yield from _unknown_in_blocks(request.system, "system")
    for index, message in enumerate(request.messages):
        yield from _unknown_in_message(message, f"messages[{index}]")


def _is_neutral(name: str, value: object) -> bool:
    if name == "enable_thinking":  # false is a choice
        return value is None
    if name == "chat_template_kwargs" and isinstance(value, dict):  # false within it is one, too
        return all(inner is None for inner in value.values())
    asked = without_neutral_values(value)
    return asks_for_nothing(asked) or asked in _NEUTRAL_ELSEWHERE.get(name, ())


def _unknown_in_message(
    message: UserMessage | AssistantMessage | SystemMessage, path: str
) -> Iterator[str]:
    yield from unknown_fields(message, ignored=_IGNORED_OF_MESSAGES, path=path)
    yield from _unknown_in_blocks(message.content, f"{path}.content")


def _unknown_in_blocks(content: object, path: str) -> Iterator[str]:
    blocks: list[tuple[Block, str]] = blocks_of(content, path)
    for block, where in blocks:
        ignored = (*IGNORED, "data") if block.type == "redacted_thinking" else IGNORED
        yield from unknown_fields(block, ignored=ignored, path=where)
        if isinstance(block, ToolResultBlock):
            yield from _unknown_in_blocks(block.content, f"{where}.content")
