"""The tools of the fake service: its calls, and what it refuses as the real service does."""

from __future__ import annotations

from collections.abc import Sequence

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import message_pb2 as message_pb


def call_pieces(calls: Sequence[message_pb.ToolCall]) -> list[generation_pb.ToolCallDelta]:
    """Calls as the pieces of a delta."""
    return [
        generation_pb.ToolCallDelta(
            index=index, id=call.id, name=call.name, arguments_json=call.arguments_json
        )
        for index, call in enumerate(calls)
    ]


def problem_of(spec: chat_pb.ChatCompletionSpec) -> tuple[str, str] | None:
    """A message about the choice among tools and the field that it names; None = it is valid."""
    names = {tool.name for tool in spec.tools}
    choice, field = spec.tool_choice, "spec.tool_choice"
    if not names.issuperset(choice.allowed_names):
        return "allowed_names has a name that no tool has.", f"{field}.allowed_names"
    if choice.WhichOneof("choice") == "function_name" and choice.function_name not in names:
        message = f"function_name is {choice.function_name!r}, but there is no such tool."
        return message, f"{field}.function_name"
    if choice.mode == message_pb.TOOL_CHOICE_MODE_REQUIRED and not names:
        return "A call is required, but the request has no tools.", f"{field}.mode"
    return None
