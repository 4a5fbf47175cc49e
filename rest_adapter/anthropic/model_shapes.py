"""The shapes of Anthropic's models, for the OpenAPI document."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict


class Capability(TypedDict):
    """Whether something is supported."""

    supported: bool


class ContextCapability(Capability):
    """What can be left out of a conversation."""

    clear_thinking_20251015: Capability
    clear_tool_uses_20250919: Capability
    compact_20260112: Capability


class EffortCapability(Capability):
    """The efforts of reasoning."""

    low: Capability
    medium: Capability
    high: Capability
    xhigh: Capability
    max: Capability


class ServerToolsCapability(Capability):
    """Tools that a service runs itself."""

    code_execution: Capability
    web_search: Capability


class ThinkingTypes(TypedDict):
    """The values of `thinking.type`."""

    adaptive: Capability
    between_tools: Capability
    disabled: Capability
    enabled: Capability


class ThinkingCapability(Capability):
    """Reasoning."""

    types: ThinkingTypes


class ModelCapabilities(TypedDict):
    """What a model can do."""

    batch: Capability
    citations: Capability
    code_execution: Capability
    context_management: ContextCapability
    effort: EffortCapability
    image_input: Capability
    pdf_input: Capability
    server_tools: ServerToolsCapability
    structured_outputs: Capability
    thinking: ThinkingCapability


class ModelInfo(TypedDict):
    """A served model."""

    type: Literal["model"]
    id: str
    display_name: str
    created_at: str
    lifecycle: Literal["active"]
    deprecated_at: None
    retires_at: None
    line: None
    max_input_tokens: int
    max_tokens: int
    capabilities: ModelCapabilities


class ModelPage(TypedDict):
    """Served models."""

    data: list[ModelInfo]
    has_more: bool
    first_id: str | None
    last_id: str | None
