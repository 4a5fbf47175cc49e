"""Renders the events of a streamed answer.

Its content is a sequence of blocks, of which only the last is open: reasoning, text, and tool calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import orjson

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from rest_adapter.anthropic.messages import answer


_REASONING: Final = "thinking"
_TEXT: Final = "text"
_DELTA: Final = (
    b"event: content_block_delta\n"
    b'data: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":%b}}\n\n'
)


@dataclass(frozen=True, slots=True)
class _Call:
    """The kind of a block that is a tool call: the call's index."""

    index: int


class EventWriter:
    """Renders the events of one answer, in order.

    Args:
        only_prompt: Leave out the answer itself.
        omits_thinking: Leave out the text of the reasoning.
        tells_writes: As in `answer.usage`.
    """

    def __init__(
        self, *, only_prompt: bool = False, omits_thinking: bool, tells_writes: bool
    ) -> None:
        self._only_prompt = only_prompt
        self._omits_thinking = omits_thinking
        self._tells_writes = tells_writes
        self._open: str | _Call | None = None
        self._index = -1
        self._has_calls = False
        self._end: dict[str, Any] = {}

    def render(self, event: chat_pb.StreamChatCompletionResponse) -> bytes:
        """The bytes of an event: none, one or several of Anthropic's.

        Raises:
            ApiError: The answer was aborted.
        """
        match event.WhichOneof("event"):
            case "delta":
                return self._delta(event.delta)
            case "started":
                return self._started(event.started)
            case "finished":
                return self._finished(event.finished)
            case "usage":
                return self._usage(event.usage)
            case _:
                return b""

    def _started(self, started: generation_pb.Started) -> bytes:
        used = answer.usage(started.prompt_usage, tells_writes=self._tells_writes)
        head = answer.beginning(started, used)
        return _event("message_start", {"message": head}) + _event("ping", {})

    def _delta(self, delta: generation_pb.Delta) -> bytes:
        out = b""
        if self._only_prompt:
            return out
        if delta.reasoning:
            out += self._switch(_REASONING, answer.thinking_block("", ""))
            if not self._omits_thinking:
                out += self._piece(b"thinking_delta", b"thinking", delta.reasoning)
        if delta.text:
            out += self._switch(_TEXT, answer.text_block(""))
            out += self._piece(b"text_delta", b"text", delta.text)
        for call in delta.tool_calls:
            self._has_calls = True
            out += self._switch(_Call(call.index), answer.tool_use_block(call.id, call.name, {}))
            if call.arguments_json:
                out += self._piece(b"input_json_delta", b"partial_json", call.arguments_json)
        return out

    def _finished(self, finished: generation_pb.Finished) -> bytes:
        if self._only_prompt:
            self._end = answer.stop_of_nothing(finished.reason)
            return b""
        self._end = answer.stop(finished.reason, finished.stop_detail, has_calls=self._has_calls)
        nothing = self._index < 0
        begun = self._switch(_TEXT, answer.text_block("")) if nothing else b""
        return begun + self._close()

    def _usage(self, used: usage_pb.Usage) -> bytes:
        if self._only_prompt:
            used = answer.without_answer(used)
        tokens = answer.usage(used, tells_writes=self._tells_writes)
        document = {"delta": self._end, "usage": tokens}
        return _event("message_delta", document) + _event("message_stop", {})

    def _switch(self, kind: str | _Call, block: dict[str, Any]) -> bytes:
        """Begins a block, unless one of this kind is open."""
        if self._open == kind:
            return b""
        ended = self._close()
        self._open = kind
        self._index += 1
        return ended + _event("content_block_start", {"index": self._index, "content_block": block})

    def _close(self) -> bytes:
        """Ends the open block, if there is one; reasoning ends with its signature."""
        if self._open is None:
            return b""
        signed = b""
        if self._open == _REASONING:
            signed = self._piece(b"signature_delta", b"signature", answer.SIGNATURE)
        self._open = None
        return signed + _event("content_block_stop", {"index": self._index})

    def _piece(self, kind: bytes, name: bytes, text: str) -> bytes:
        """A piece of the open block. Most events are of this kind, so that only the text is rendered anew."""
        return _DELTA % (self._index, kind, name, orjson.dumps(text))


def _event(kind: str, document: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind} | document))
