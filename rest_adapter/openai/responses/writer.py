"""Writes a response while it is generated: its resource, and the frames of its stream.

Both come from the same events, so that a response that was not streamed can be replayed as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final
import zlib

import orjson

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from rest_adapter.errors import ApiError
from rest_adapter.openai.errors import type_and_code
from rest_adapter.openai.responses import resource as states
from rest_adapter.openai.responses.output import Event, Output, OutputOptions, delta_of
from rest_adapter.openai.responses.resource import Beginning, ended, resource_of


_FAST: Final = 1  # zlib's level
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


class Frames:
    """Frames that are rendered each time that they are iterated over: those of the end have all of a response each.

    Args:
        events: Their events.
        first: The sequence number of the first one.
    """

    def __init__(self, events: Iterable[Event], first: int) -> None:
        self._events = list(events)
        self._first = first

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[bytes]:
        for number, event in enumerate(self._events, self._first):
            yield _frame(event, number)


_NONE: Final = Frames((), 0)


class ResponseWriter:
    """Writes one response.

    Attributes:
        resource: The response as it is now.
        is_ended: Whether it has ended.

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
        self._output = Output(options)
        self._packed: list[bytes] = []
        self._packed_bytes = 0
        self._echo_bytes = 0
        self._packer = zlib.compressobj(_FAST) if beginning.stored else None
        self._is_streamed = is_streamed
        self._count = 0
        self._reason = usage_pb.FINISH_REASON_UNSPECIFIED

    @property
    def num_bytes(self) -> int:
        """About how many bytes it holds, without its text, which is small; also of what it repeats of the request."""
        return self._output.logprob_bytes + self._packed_bytes + self._echo_bytes

    def packed_frames(self) -> bytes:
        """All frames of the stream of a response that has ended and is stored, compressed."""
        if self._packer is not None:
            self._packed.append(self._packer.flush())
            self._packer = None
        return b"".join(self._packed)

    def begin(self) -> Frames:
        """The first frames; with a large request they take long."""
        self._echo_bytes = len(orjson.dumps(self.resource))
        kinds = ("response.created", "response.in_progress")
        return self._write({"type": kind, "response": self.resource} for kind in kinds)

    def add(self, event: chat_pb.StreamChatCompletionResponse) -> Frames:
        """The frames of an event of the service after its first one; the last one ends the response."""
        match event.WhichOneof("event"):
            case "delta":
                return self._write(self._output.add(event.delta))
            case "finished":
                self._reason = event.finished.reason
                return _NONE
            case "usage":
                status = _STATUSES.get(self._reason, states.COMPLETED)
                return self._end(status, usage=event.usage)
            case _:
                return _NONE

    def add_choice(self, choice: generation_pb.Choice, usage: usage_pb.Usage) -> None:
        """Takes a complete answer; it ends the response."""
        self._reason = choice.finish_reason
        self._write(self._output.add(delta_of(choice)))
        self._end(_STATUSES.get(self._reason, states.COMPLETED), usage=usage)

    def cancel(self) -> Frames:
        """The frames of a response that was cancelled; they end it."""
        return self._end(states.CANCELLED)

    def fail(self, error: ApiError) -> Frames:
        """The frames of a failure; they end the response, also one that has ended but whose client does not know yet.

        The first one has the error in both forms that clients look for: OpenAI's types have its fields at top level,
        but its service and its Python client have them in `error`.
        """
        kind, code = type_and_code(error)
        fields = {"code": code, "message": error.message or code, "param": error.param}
        frame = {"type": "error", "error": {"type": kind, **fields}, **fields}
        return self._end(states.FAILED, error=error, before=[frame])

    def _end(
        self,
        status: str,
        *,
        usage: usage_pb.Usage | None = None,
        error: ApiError | None = None,
        before: Iterable[Event] = (),
    ) -> Frames:
        if self.is_ended and error is None:
            return _NONE
        events = [*self._output.finish(complete=status == states.COMPLETED), *before]
        self.resource = ended(self.resource, status, self._output.items, usage, error)
        self.is_ended = True
        return self._write([*events, {"type": _LAST_EVENTS[status], "response": self.resource}])

    def _write(self, events: Iterable[Event]) -> Frames:
        frames = Frames(events, self._count)
        self._count += len(frames)
        if self._packer is not None:
            for frame in frames:
                self._packed.append(self._packer.compress(frame))
                self._packed_bytes += len(self._packed[-1])
        return frames if self._is_streamed else _NONE


def _frame(event: Event, number: int) -> bytes:
    kind: Any = event["type"]
    data = orjson.dumps({"type": kind, "sequence_number": number, **event})
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)
