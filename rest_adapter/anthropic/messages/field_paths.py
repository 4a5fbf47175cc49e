"""Maps the proto fields of a request to fields of its JSON, for errors of the service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import re
import sys
from typing import Final

from rest_adapter.anthropic.messages.conversation import Place
from rest_adapter.anthropic.messages.schema import MessagesRequest


_PARAMS: Final = {
    "logprobs": None,
    "request_id": None,
    "stop.strings": "stop_sequences",
    "template.enable_thinking": "thinking.type",
    "tool_choice.function_name": "tool_choice.name",
    "tool_choice.mode": "tool_choice.type",
    "tool_choice.parallel": "tool_choice.disable_parallel_tool_use",
}
_OF_CALL: Final = {"arguments_json": ".input", "id": ".id", "name": ".name"}
_MESSAGE: Final = re.compile(
    r"messages\[(\d+)\](?:\.(?:(parts|tool_calls)(?:\[(\d+)\])?|(\w+)))?(?:\.(.*))?$"
)
_SCHEMA: Final = re.compile(r"^(tools\[\d+\])\.parameters_json_schema")


@dataclass(frozen=True, slots=True)
class FieldPaths:
    """The paths of one request.

    Attributes:
        request: The request.
        places: Where each message of the proto comes from.
    """

    request: MessagesRequest
    places: Sequence[Place]

    def param_of(self, field: str) -> str | None:
        """Turns `spec.messages[1].parts[0].image` into `messages[0].content[0].source.url`."""
        path = field.removeprefix("spec.")
        match = _MESSAGE.match(path)
        if match is not None and int(match[1]) < len(self.places):
            return self._of_message(self.places[int(match[1])], match)
        plain = path.partition("[")[0]
        if not path or plain in _PARAMS:
            return _PARAMS.get(plain)
        if path.startswith("constraint"):
            own = self.request.output_format is None
            return "output_config.format.schema" if own else "output_format.schema"
        if path == "template.reasoning_effort":
            return "output_config.effort" if self.request.effort else "thinking.type"
        if path == "template.continue_final_message":
            return f"messages[{len(self.request.messages) - 1}]"
        path = path.removeprefix("sampling.")
        return _SCHEMA.sub(r"\1.input_schema", path)

    def _of_message(self, place: Place, match: re.Match[str]) -> str:
        _, group, index, name, rest = match.groups()
        position = sys.maxsize if index is None else int(index)
        if group == "parts" and position < len(place.parts):
            block, value = place.parts[position]
            oversized = f"{block}.transformations.oversized_image"
            return oversized if rest == "image.oversized" else value
        if group == "tool_calls" and position < len(place.calls):
            return place.calls[position] + _OF_CALL.get(rest or "", "")
        return {
            "parts": place.path if place.path == "system" else f"{place.path}.content",
            "reasoning": place.reasoning,
            "role": place.role,
            "tool_call_id": f"{place.path}.tool_use_id",
        }.get(group or name or "") or place.path
