"""The JSON schema of content blocks."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from rest_adapter.json_model import ClosedModel, Items, JsonModel


IGNORED: Final = frozenset(("cache_control", "caller", "citations", "signature", "toolset_name"))
"""Fields of blocks that have no effect on an answer of this service."""

UNSUPPORTED: Final = {
    "browser_state": "send its text or an image",
    "container_upload": "this service has no containers",
    "document": "send its text, or images of its pages",
    "fallback": "leave it out",
    "file": "send the image itself or its URL",
    "search_result": "send its text",
    **dict.fromkeys(
        ("tool_addition", "tool_reference", "tool_removal"), "send the tools in 'tools'"
    ),
    **dict.fromkeys(
        (
            "advisor_tool_result",
            "bash_code_execution_tool_result",
            "code_execution_tool_result",
            "compaction",
            "mcp_tool_listing",
            "mcp_tool_result",
            "mcp_tool_use",
            "server_tool_use",
            "text_editor_code_execution_tool_result",
            "tool_search_tool_result",
            "web_fetch_tool_result",
            "web_search_tool_result",
        ),
        "this service runs no tools itself",
    ),
}
"""Known types of blocks and sources that are not served, with what to do instead."""


class TextBlock(JsonModel):
    """Text."""

    type: Literal["text"]
    text: str


class Base64Source(JsonModel):
    """An image as base64; its bytes tell the format, whatever `media_type` says."""

    type: Literal["base64"]
    data: str
    media_type: str | None = None


class UrlSource(JsonModel):
    """An image by its URL."""

    type: Literal["url"]
    url: str


class ImageTransformations(ClosedModel):
    """What is done to an image before the model gets it."""

    oversized_image: Literal["downsize", "error"] | None = None


class ImageBlock(JsonModel):
    """An image."""

    type: Literal["image"]
    source: Annotated[Base64Source | UrlSource, Field(discriminator="type")]
    transformations: ImageTransformations | None = None


class ToolUseBlock(JsonModel):
    """A tool call that the model made."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ToolResultBlock(JsonModel):
    """The result of a tool call."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | Items[Annotated[TextBlock | ImageBlock, Field(discriminator="type")]] | None = (
        None
    )
    is_error: bool | None = None


class ThinkingBlock(JsonModel):
    """The reasoning of an earlier answer."""

    type: Literal["thinking"]
    thinking: str


class RedactedThinkingBlock(JsonModel):
    """Reasoning of another service that only that service can read."""

    type: Literal["redacted_thinking"]


UserBlock = TextBlock | ImageBlock | ToolResultBlock
AssistantBlock = TextBlock | ToolUseBlock | ThinkingBlock | RedactedThinkingBlock
Block = UserBlock | AssistantBlock


class UserMessage(JsonModel):
    """A turn of the user."""

    role: Literal["user"]
    content: str | Items[Annotated[UserBlock, Field(discriminator="type")]] | None = None


class AssistantMessage(JsonModel):
    """An answer of the model; as the last message, its beginning."""

    role: Literal["assistant"]
    content: str | Items[Annotated[AssistantBlock, Field(discriminator="type")]] | None = None


class SystemMessage(JsonModel):
    """Instructions within the conversation."""

    role: Literal["system"]
    content: str | Items[TextBlock] | None = None


Message = Annotated[UserMessage | AssistantMessage | SystemMessage, Field(discriminator="role")]
