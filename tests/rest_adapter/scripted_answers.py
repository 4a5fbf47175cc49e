"""Answers that a test writes down itself, with reasoning and tool calls, for the fake service.

The question `script {"deltas": [...], "finished": {...}, "usage": {...}}` has the messages of the contract as JSON.
"""

from __future__ import annotations

from collections.abc import Iterator
import json

from google.protobuf import json_format

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb


def script(*deltas: object, reason: str = "STOP", **end: object) -> str:
    """The question for these deltas: texts, or fields of a `Delta`; `stop_detail` and `usage` as further fields."""
    fields = [{"text": delta} if isinstance(delta, str) else delta for delta in deltas]
    finished = {"reason": f"FINISH_REASON_{reason}", "stop_detail": end.get("stop_detail")}
    document = {"deltas": fields, "finished": finished, "usage": end.get("usage", {})}
    return f"script {json.dumps(document)}"


def call(index: int, arguments: str, call_id: str = "", name: str = "") -> dict[str, object]:
    """A delta with a piece of a tool call."""
    piece = {"index": index, "id": call_id, "name": name, "arguments_json": arguments}
    return {"tool_calls": [piece]}


def scripted_events(argument: str) -> Iterator[chat_pb.StreamChatCompletionResponse]:
    """The events after `started`."""
    document = json.loads(argument)
    kinds = [*(("delta", delta) for delta in document["deltas"])]
    kinds += [("finished", document["finished"]), ("usage", document["usage"])]
    for kind, fields in kinds:
        yield json_format.ParseDict({kind: fields}, chat_pb.StreamChatCompletionResponse())


def add_reasoning_and_calls(choice: generation_pb.Choice, delta: generation_pb.Delta) -> None:
    """Adds to a complete answer what a delta has besides text."""
    choice.reasoning += delta.reasoning
    for piece in delta.tool_calls:
        if piece.index == len(choice.tool_calls):
            choice.tool_calls.add(id=piece.id, name=piece.name)
        choice.tool_calls[piece.index].arguments_json += piece.arguments_json
