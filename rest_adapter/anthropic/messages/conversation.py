"""Converts the conversation to the messages of the proto, and remembers where each comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from rest_adapter.anthropic.messages.blocks import (
    AssistantMessage,
    Base64Source,
    ImageBlock,
    SystemMessage,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)
from rest_adapter.anthropic.messages.schema import MessagesRequest, blocks_of
from rest_adapter.errors import invalid
from rest_adapter.json_text import shown
from rest_adapter.json_values import text_of
from rest_adapter.media import OVERSIZED, ImageSources


_BILLING: Final = "x-anthropic-billing-header"
"""How a block begins that some clients put before their instructions.

It has a digest of the request, so that no two prompts would have a common prefix.
"""
_BLANK_LINE: Final = "\n\n"
_ERROR: Final = "Error: "


@dataclass(slots=True)
class Place:
    """Where a message of the proto comes from: paths in the request's JSON.

    Attributes:
        path: The message, or the block of a tool's result.
        role: What makes it a message of its role.
        parts: The block of each part, and the text or the source of the image in it.
        calls: The block of each tool call.
        reasoning: The first block of reasoning; empty = there is none.
    """

    path: str
    role: str
    parts: list[tuple[str, str]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    reasoning: str = ""


def add_messages(
    spec: chat_pb.ChatCompletionSpec, request: MessagesRequest, sources: ImageSources
) -> list[Place]:
    """Adds the conversation to a spec.

    A result of a tool becomes a message of its own, in its place among the other blocks of its turn. An answer as the
    last message is continued.

    Args:
        spec: The spec.
        request: The request.
        sources: Sets the images.

    Returns:
        The place of every message of the spec.

    Raises:
        ApiError: A message has no content, a tool's result belongs to no call, an image is invalid, or the answer to be
            continued has no text.
    """
    writer = _Writer(spec, sources)
    writer.add_instructions(request.system, "system")
    for index, message in enumerate(request.messages):
        path = f"messages[{index}]"
        if isinstance(message, UserMessage):
            writer.add_user(message, path)
        elif isinstance(message, AssistantMessage):
            writer.add_assistant(message, path)
        else:
            _require_content(message, path)
            writer.add_instructions(message.content, path)
    if not writer.places:
        raise invalid("'messages' has no text, but at least one message must.", "messages")
    last = request.messages[-1]
    if isinstance(last, AssistantMessage):
        _check_prefill(last, f"messages[{len(request.messages) - 1}]")
        spec.template.continue_final_message = True
    return writer.places


def _require_content(message: UserMessage | SystemMessage, path: str) -> None:
    if not blocks_of(message.content, f"{path}.content"):
        raise invalid(
            f"'{path}.content' is empty, but must be text or a list of blocks.",
            f"{path}.content",
        )


def _check_prefill(message: AssistantMessage, path: str) -> None:
    """Refuses an answer that cannot be continued."""
    blocks = blocks_of(message.content, f"{path}.content")
    for block, where in blocks:
        if isinstance(block, ToolUseBlock):
            raise invalid(
                f"'{where}' is a call of a tool, but no 'tool_result' follows: send its result.",
                where,
            )
    if not any(isinstance(block, TextBlock) and block.text for block, _ in blocks):
        raise invalid(
            f"'{path}' is the beginning of the answer, but has no text: leave the message out.",
            path,
        )


class _Writer:
    """Adds messages to a spec."""

    def __init__(self, spec: chat_pb.ChatCompletionSpec, sources: ImageSources) -> None:
        self._spec = spec
        self._sources = sources
        self._calls: set[str] = set()
        self.places: list[Place] = []

    def add_instructions(self, content: str | Sequence[TextBlock] | None, path: str) -> None:
        """Adds a system message: all its texts as one, if there are any."""
        texts = [
            block.text
            for block, _ in blocks_of(content, path)
            if block.text and (isinstance(content, str) or not block.text.startswith(_BILLING))
        ]
        if texts:
            target, place = self._add(message_pb.ROLE_SYSTEM, path)
            _add_text(target, place, _BLANK_LINE.join(texts), path, path)

    def add_user(self, message: UserMessage, path: str) -> None:
        """Adds a turn of the user."""
        _require_content(message, path)
        current: tuple[message_pb.Message, Place] | None = None
        for block, where in blocks_of(message.content, f"{path}.content"):
            if isinstance(block, ToolResultBlock):
                self._add_result(block, where)
                current = None
                continue
            if current is None:
                current = self._add(message_pb.ROLE_USER, path)
            self._add_content(*current, block, where)

    def add_assistant(self, message: AssistantMessage, path: str) -> None:
        """Adds an earlier answer; reasoning that only another service can read is left out."""
        target, place = self._add(message_pb.ROLE_ASSISTANT, path)
        thoughts = []
        for block, where in blocks_of(message.content, f"{path}.content"):
            if isinstance(block, TextBlock):
                self._add_content(target, place, block, where)
            elif isinstance(block, ToolUseBlock):
                self._calls.add(block.id)
                place.calls.append(where)
                arguments = text_of(block.input, f"{where}.input")
                target.tool_calls.add(id=block.id, name=block.name, arguments_json=arguments)
            elif isinstance(block, ThinkingBlock) and block.thinking:
                place.reasoning = place.reasoning or where
                thoughts.append(block.thinking)
        target.reasoning = _BLANK_LINE.join(thoughts)

    def _add(self, role: message_pb.Role, path: str) -> tuple[message_pb.Message, Place]:
        place = Place(path, path if path == "system" else f"{path}.role")
        self.places.append(place)
        return self._spec.messages.add(role=role), place

    def _add_result(self, block: ToolResultBlock, path: str) -> None:
        if block.tool_use_id not in self._calls:
            raise invalid(
                f"'{path}.tool_use_id' is {shown(block.tool_use_id)}, but no earlier message has a 'tool_use' with"
                " this id.",
                f"{path}.tool_use_id",
            )
        target, place = self._add(message_pb.ROLE_TOOL, path)
        place.role = f"{path}.type"
        target.tool_call_id = block.tool_use_id
        for inner, where in blocks_of(block.content, f"{path}.content"):
            self._add_content(target, place, inner, where)
        if block.is_error:
            _mark_error(target, place)
        elif not target.parts:
            _add_text(target, place, "", path, path)

    def _add_content(self, target: message_pb.Message, place: Place, block: Any, path: str) -> None:
        """Adds a block of text or an image."""
        if isinstance(block, TextBlock):
            # The path of a content that is a text is that of the text.
            value = f"{path}.text" if path.endswith("]") else path
            _add_text(target, place, block.text, path, value)
            return
        assert isinstance(block, ImageBlock)
        image, source = target.parts.add().image, block.source
        if isinstance(source, Base64Source):
            where = f"{path}.source.data"
            self._sources.set_base64(image, source.data, source.media_type or "", where)
        else:
            where = f"{path}.source.url"
            self._sources.set(image, source.url, where)
        place.parts.append((path, where))
        if block.transformations is not None and block.transformations.oversized_image is not None:
            image.oversized = OVERSIZED[block.transformations.oversized_image]


def _add_text(target: message_pb.Message, place: Place, text: str, block: str, value: str) -> None:
    target.parts.add(text=text)
    place.parts.append((block, value))


def _mark_error(target: message_pb.Message, place: Place) -> None:
    """Makes the result of a failed tool say so, as the chat formats have no other place for it."""
    for part in target.parts:
        if part.HasField("text"):
            if not part.text.lower().startswith("error"):
                part.text = _ERROR + part.text
            return
    target.parts.insert(0, message_pb.Part(text=_ERROR.rstrip(": ")))
    place.parts.insert(0, (place.path, place.path))
