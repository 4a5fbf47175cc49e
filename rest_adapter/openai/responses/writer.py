"""Writes a response while it is generated: its resource, and the frames of its stream.

Both come from the same events, so that a response that was not streamed can be replayed as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import orjson

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from rest_adapter.errors import ApiError
from rest_adapter.openai.errors import type_and_code
from rest_adapter.openai.responses import resource as states
from rest_adapter.openai.responses.output import Event, Output, OutputOptions, delta_of
from rest_adapter.openai.responses.resource import Beginning, ended, resource_of


_LAST_EVENTS: Final = {
    states.COMPLETED: "response.completed",
    states.INCOMPLETE: "response.incomplete",
    # There is no event of its own for it.
    states.CANCELLED: "response.incomplete",
    states.FAILED: "response.failed",
}
_STATUSES: Final = {
    usage_pb.FINISH_REASON_LENGTH: states.INCOMPLETE,
    usage_pb.FINISH_REASON_CONTEXT_LENGTH: states.INCOMPLETE,
    usage_pb.FINISH_REASON_ABORTED: states.CANCELLED,
}


class ResponseWriter:
    """Writes one response.

    Attributes:
        resource: The response as it is now.
        is_ended: Whether it has ended.
        frames: All frames of its stream so far, in the order of their sequence numbers, if it is to be stored.

    Args:
        beginning: What is known before the first piece of the answer.
        is_streamed: Whether frames are wanted even if they are not stored.
    """

    def __init__(self, beginning: Beginning, *, is_streamed: bool) -> None:
        asked = beginning.asked
        options = OutputOptions(
            logprobs=asked.includes_logprobs,
            summary=asked.summarises_reasoning,
            encrypted_reasoning=asked.includes_encrypted_reasoning,
        )
        self.resource = resource_of(beginning)
        self.is_ended = False
        self.frames: list[bytes] = []
        self._output = Output(options)
        self._is_stored = beginning.stored
        self._has_frames = beginning.stored or is_streamed
        self._count = 0
        self._reason = usage_pb.FINISH_REASON_UNSPECIFIED

    def begin(self) -> bytes:
        """The first frames."""
        kinds = ("response.created", "response.in_progress")
        return self._write({"type": kind, "response": self.resource} for kind in kinds)

    def add(self, event: chat_pb.StreamChatCompletionResponse) -> bytes:
        """The frames of an event of the service after its first one; the last one ends the response."""
        match event.WhichOneof("event"):
            case "delta":
                return self._write(self._output.add(event.delta))
            case "finished":
                self._reason = event.finished.reason
                return b""
            case "usage":
                status = _STATUSES.get(self._reason, states.COMPLETED)
                return self._end(status, usage=event.usage)
            case _:
                return b""

    def add_choice(self, choice: generation_pb.Choice, usage: usage_pb.Usage) -> bytes:
        """The frames of a complete answer; it ends the response."""
        self._reason = choice.finish_reason
        frames = self._write(self._output.add(delta_of(choice)))
        status = _STATUSES.get(self._reason, states.COMPLETED)
        return frames + self._end(status, usage=usage)

    def cancel(self) -> bytes:
        """The frames of a response that was cancelled; they end it."""
        return self._end(states.CANCELLED)

    def fail(self, error: ApiError) -> bytes:
        """The frames of a failure; they end the response.

        The first one has the error in both forms that clients look for: OpenAI's types have its fields at top level,
        but its service and its Python client have them in `error`.
        """
        kind, code = type_and_code(error)
        fields = {"code": code, "message": error.message or code, "param": error.param}
        frame = {"type": "error", "error": {"type": kind, **fields}, **fields}
        frames = self._write(self._output.finish(complete=False)) + self._write([frame])
        return frames + self._end(states.FAILED, error=error)

    def _end(
        self, status: str, *, usage: usage_pb.Usage | None = None, error: ApiError | None = None
    ) -> bytes:
        frames = self._write(self._output.finish(complete=status == states.COMPLETED))
        self.resource = ended(self.resource, status, self._output.items, usage, error)
        self.is_ended = True
        return frames + self._write([{"type": _LAST_EVENTS[status], "response": self.resource}])

    def _write(self, events: Iterable[Event]) -> bytes:
        written = []
        for event in events:
            if self._has_frames:
                written.append(_frame(event, self._count))
            self._count += 1
        if self._is_stored:
            self.frames += written
        return b"".join(written)


def _frame(event: Event, number: int) -> bytes:
    kind: Any = event["type"]
    data = orjson.dumps({"type": kind, "sequence_number": number, **event})
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)
