"""The texts of a choice that arrive in pieces.

A message keeps a copy of every value that a text field of it ever had (protobuf 6, upb), until the message is freed. So
adding piece by piece to a field takes memory by the square of the length: gigabytes for a long answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from qwenvl.inference.v1 import generation_pb2 as generation_pb


@dataclass(slots=True)
class GrowingTexts:
    """The pieces of the text fields of a choice, which `fill` joins.

    Attributes:
        text: Of the text.
        reasoning: Of the reasoning.
        arguments: For each tool call, of its arguments.
    """

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    arguments: list[list[str]] = field(default_factory=list)

    def add_arguments(self, index: int, piece: str) -> None:
        """Adds to the arguments of a tool call, which may be a new one."""
        while len(self.arguments) <= index:
            self.arguments.append([])
        self.arguments[index].append(piece)

    def fill(self, choice: generation_pb.Choice) -> None:
        """Sets the fields; the choice has the tool calls."""
        choice.text = "".join(self.text)
        choice.reasoning = "".join(self.reasoning)
        for call, pieces in zip(choice.tool_calls, self.arguments, strict=True):
            call.arguments_json = "".join(pieces)
