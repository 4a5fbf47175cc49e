"""Makes the messages of a conversation of items, and knows which field of the JSON became which of a message."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
import re
from typing import Final

from qwenvl.inference.v1 import message_pb2 as message_pb
from rest_adapter.errors import invalid
from rest_adapter.json_text import shown
from rest_adapter.media import ImageSources
from rest_adapter.openai.content import Content, Text
from rest_adapter.openai.responses.items import (
    AnyItem,
    CallItem,
    CallOutputItem,
    CompactionItem,
    MessageItem,
    ReasoningItem,
)


_ROLES: Final = {
    "system": message_pb.ROLE_SYSTEM,
    "developer": message_pb.ROLE_SYSTEM,
    "user": message_pb.ROLE_USER,
    "assistant": message_pb.ROLE_ASSISTANT,
}
_ARGUMENTS: Final = {"arguments_json": "arguments", "id": "call_id", "name": "name"}
_PART: Final = re.compile(r"parts(?:\[(\d+)\](?:\.(.*))?)?$")
_CALL: Final = re.compile(r"tool_calls\[(\d+)\](?:\.(\w+))?$")
_SUMMARY_HEAD: Final = "Summary of the conversation so far:\n\n"


@dataclass(slots=True)
class Turn:
    """One message.

    Attributes:
        role: Its author.
        path: The path in the JSON of the item that began it.
        parts: Its content.
        reasoning: The reasoning before the content.
        calls: The calls after the content.
        call_id: The call that it answers.
    """

    role: message_pb.Role
    path: str
    parts: list[Content] = field(default_factory=list)
    reasoning: ReasoningItem | None = None
    calls: list[CallItem] = field(default_factory=list)
    call_id: str = ""

    @classmethod
    def of_instructions(cls, instructions: str) -> Turn:
        """The instructions of a request as a message."""
        return cls(message_pb.ROLE_SYSTEM, "instructions", [Text(instructions, "instructions")])

    def add_to(self, target: message_pb.Message, sources: ImageSources) -> None:
        """Sets a message.

        Raises:
            ApiError: `sources` refuses an image.
        """
        target.role = self.role
        for part in self.parts:
            part.add_to(target, sources)
        if self.reasoning is not None:
            target.reasoning = self.reasoning.text
        for call in self.calls:
            target.tool_calls.add(id=call.call_id, name=call.name, arguments_json=call.arguments)
        target.tool_call_id = self.call_id

    def param(self, field_path: str) -> str:
        """The path in the JSON of a field of the message, such as `parts[0].image`."""
        if (match := _PART.match(field_path)) and self.parts:
            if match[1] is None or int(match[1]) >= len(self.parts):
                return self.path
            part = self.parts[int(match[1])]
            return part.param(match[2] or "") or part.param("")
        if (match := _CALL.match(field_path)) and int(match[1]) < len(self.calls):
            path = self.calls[int(match[1])].path
            name = _ARGUMENTS.get(match[2] or "")
            return f"{path}.{name}" if name else path
        if field_path == "reasoning" and self.reasoning is not None:
            return self.reasoning.path
        return f"{self.path}.call_id" if field_path == "tool_call_id" else self.path


def turns_of(items: Iterable[AnyItem]) -> list[Turn]:
    """The messages of a conversation.

    Reasoning belongs to the assistant's message or calls after it; if none follow, it is left out, as no chat format
    has a place for it. Calls belong to the assistant's message before them.

    Args:
        items: The items, oldest first, without references.

    Raises:
        ApiError: An output is of a call that is not before it.
    """
    turns: list[Turn] = []
    called: set[str] = set()
    reasoning: ReasoningItem | None = None
    for item in items:
        match item:
            case ReasoningItem():
                reasoning = item if item.text else reasoning
                continue
            case CallItem():
                last = turns[-1] if turns else None
                if last is None or last.role != message_pb.ROLE_ASSISTANT or reasoning is not None:
                    last = Turn(message_pb.ROLE_ASSISTANT, item.path, reasoning=reasoning)
                    turns.append(last)
                last.calls.append(item)
                called.add(item.call_id)
            case CallOutputItem():
                _require_call(item, called)
                turns.append(
                    Turn(message_pb.ROLE_TOOL, item.path, [*item.parts], call_id=item.call_id)
                )
            case CompactionItem():
                summary = Text(_SUMMARY_HEAD + item.summary, f"{item.path}.encrypted_content")
                turns.append(Turn(message_pb.ROLE_USER, item.path, [summary]))
            case MessageItem():
                turn = Turn(_ROLES[item.role], item.path, [*item.parts])
                if turn.role == message_pb.ROLE_ASSISTANT:
                    turn.reasoning = reasoning
                turns.append(turn)
        reasoning = None
    return turns


def _require_call(item: CallOutputItem, called: set[str]) -> None:
    if item.call_id not in called:
        path = f"{item.path}.call_id"
        raise invalid(
            f"'{path}' is {shown(item.call_id)}, but no earlier function_call has that call_id.",
            path,
        )
