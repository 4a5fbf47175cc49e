"""Builds the output items of a response from the pieces of an answer, and the stream events that tell of them.

Items follow each other in the order of generation: one is done before the next one begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from qwenvl.inference.v1 import generation_pb2 as generation_pb
from rest_adapter.openai import answer
from rest_adapter.openai.responses.blobs import pack
from rest_adapter.openai.responses.items import REASONING
from rest_adapter.openai.responses.listing import new_id


Event = dict[str, Any]
"""A stream event without its sequence number; `type` comes first."""

_COMPLETED: Final = "completed"
_INCOMPLETE: Final = "incomplete"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """What the output has besides the text.

    Attributes:
        logprobs: Log probabilities of the text's tokens.
        summary: Reasoning is a summary instead of content.
        encrypted_reasoning: Reasoning is also in the form that a caller sends back.
    """

    logprobs: bool = False
    summary: bool = False
    encrypted_reasoning: bool = False


class _Text:
    """A message with one text."""

    def __init__(self, index: int) -> None:
        self._id = new_id("msg")
        self._where = {"item_id": self._id, "output_index": index, "content_index": 0}
        self._pieces: list[str] = []
        self._logprobs: list[bytes] = []
        self._waiting: list[bytes] = []

    def start(self) -> dict[str, Any]:
        return self._item("in_progress", [])

    def done(self, status: str) -> dict[str, Any]:
        return self._item(status, [self._part()])

    def begin(self) -> Iterator[Event]:
        yield {"type": "response.content_part.added"} | self._where | {"part": self._part()}

    def end(self) -> Iterator[Event]:
        part = self._part()
        text = {"text": part["text"], "logprobs": part["logprobs"]}
        yield {"type": "response.output_text.done"} | self._where | text
        yield {"type": "response.content_part.done"} | self._where | {"part": part}

    def add(self, text: str, logprobs: list[bytes]) -> Iterator[Event]:
        """Appends a piece; entries without a text wait for the next piece, as no delta is empty."""
        self._logprobs += logprobs
        self._waiting += logprobs
        if text:
            self._pieces.append(text)
            piece = {"delta": text, "logprobs": answer.list_of(self._waiting)}
            self._waiting = []
            yield {"type": "response.output_text.delta"} | self._where | piece

    def _part(self) -> dict[str, Any]:
        text = {"type": "output_text", "text": "".join(self._pieces), "annotations": []}
        if len(self._logprobs) > 1:
            self._logprobs = [b",".join(self._logprobs)]  # for all events of the end
        return text | {"logprobs": answer.list_of(self._logprobs)}

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        item = {"id": self._id, "type": "message", "status": status, "role": "assistant"}
        return item | {"content": content}


class _Reasoning:
    """Reasoning, as it is or as a summary."""

    def __init__(self, index: int, options: OutputOptions) -> None:
        self._id = new_id("rs")
        self._options = options
        self._pieces: list[str] = []
        position = "summary_index" if options.summary else "content_index"
        self._where = {"item_id": self._id, "output_index": index, position: 0}
        self._text_event = (
            "response.reasoning_summary_text" if options.summary else "response.reasoning_text"
        )
        self._part_event = (
            "response.reasoning_summary_part" if options.summary else "response.content_part"
        )

    def start(self) -> dict[str, Any]:
        return self._item("in_progress", [])

    def done(self, status: str) -> dict[str, Any]:
        item = self._item(status, [self._part()])
        if self._options.encrypted_reasoning:
            item["encrypted_content"] = pack(REASONING, "".join(self._pieces))
        return item

    def begin(self) -> Iterator[Event]:
        yield {"type": f"{self._part_event}.added"} | self._where | {"part": self._part()}

    def end(self) -> Iterator[Event]:
        part = self._part()
        yield {"type": f"{self._text_event}.done"} | self._where | {"text": part["text"]}
        yield {"type": f"{self._part_event}.done"} | self._where | {"part": part}

    def add(self, text: str) -> Iterator[Event]:
        """Appends a piece."""
        self._pieces.append(text)
        yield {"type": f"{self._text_event}.delta"} | self._where | {"delta": text}

    def _part(self) -> dict[str, Any]:
        kind = "summary_text" if self._options.summary else "reasoning_text"
        return {"type": kind, "text": "".join(self._pieces)}

    def _item(self, status: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
        item = {"id": self._id, "type": "reasoning", "status": status}
        if self._options.summary:
            return item | {"summary": parts}
        return item | {"summary": [], "content": parts}


class _Call:
    """A call of a function."""

    def __init__(self, index: int, call: generation_pb.ToolCallDelta) -> None:
        self.index = call.index
        self._id = new_id("fc")
        self._call_id = call.id or new_id("call")
        self._name = call.name
        self._where = {"item_id": self._id, "output_index": index}
        self._pieces: list[str] = []

    def start(self) -> dict[str, Any]:
        return self._item("in_progress")

    def done(self, status: str) -> dict[str, Any]:
        return self._item(status)

    def begin(self) -> Iterator[Event]:
        return iter(())

    def end(self) -> Iterator[Event]:
        done = {"arguments": "".join(self._pieces)}
        yield {"type": "response.function_call_arguments.done"} | self._where | done

    def add(self, arguments: str) -> Iterator[Event]:
        """Appends a piece of the arguments."""
        if arguments:
            self._pieces.append(arguments)
            delta = {"delta": arguments}
            yield {"type": "response.function_call_arguments.delta"} | self._where | delta

    def _item(self, status: str) -> dict[str, Any]:
        call = {"id": self._id, "type": "function_call", "status": status}
        arguments = "".join(self._pieces)
        return call | {"call_id": self._call_id, "name": self._name, "arguments": arguments}


class Output:
    """The output items of one response.

    Attributes:
        items: The items that are done.
        logprob_bytes: Bytes of all log probabilities so far, in JSON.

    Args:
        options: What they have besides the text.
    """

    def __init__(self, options: OutputOptions) -> None:
        self.items: list[dict[str, Any]] = []
        self.logprob_bytes = 0
        self._options = options
        self._open: _Text | _Reasoning | _Call | None = None
        self._early: list[bytes] = []

    def add(self, delta: generation_pb.Delta) -> Iterator[Event]:
        """Appends a piece of the answer.

        Yields:
            The events that tell of it.
        """
        if delta.reasoning:
            self._early.clear()
            if not isinstance(self._open, _Reasoning):
                yield from self._begin(_Reasoning(self._next_index(), self._options))
            assert isinstance(self._open, _Reasoning)
            yield from self._open.add(delta.reasoning)
        entries = self._logprobs(delta)
        if delta.text:
            if not isinstance(self._open, _Text):
                yield from self._begin(_Text(self._next_index()))
            assert isinstance(self._open, _Text)
            early, self._early = self._early, []
            yield from self._open.add(delta.text, [*early, *entries])
        elif not delta.reasoning and not delta.tool_calls:
            if isinstance(self._open, _Text):
                yield from self._open.add("", entries)
            else:
                self._early += entries
        for call in delta.tool_calls:
            self._early.clear()
            if not isinstance(self._open, _Call) or self._open.index != call.index:
                yield from self._begin(_Call(self._next_index(), call))
            assert isinstance(self._open, _Call)
            yield from self._open.add(call.arguments_json)

    def finish(self, *, complete: bool) -> Iterator[Event]:
        """Ends the output; if it is not complete, its last item is not either.

        Yields:
            The events that tell of it.
        """
        if self._open is None and not self.items:
            yield from self._begin(_Text(0))
        yield from self._close(_COMPLETED if complete else _INCOMPLETE)

    def _next_index(self) -> int:
        return len(self.items) + (self._open is not None)

    def _begin(self, item: _Text | _Reasoning | _Call) -> Iterator[Event]:
        yield from self._close(_COMPLETED)
        self._open = item
        index = len(self.items)
        yield {"type": "response.output_item.added", "output_index": index, "item": item.start()}
        yield from item.begin()

    def _close(self, status: str) -> Iterator[Event]:
        if self._open is None:
            return
        yield from self._open.end()
        item = self._open.done(status)
        self._open = None
        index = len(self.items)
        self.items.append(item)
        yield {"type": "response.output_item.done", "output_index": index, "item": item}

    def _logprobs(self, delta: generation_pb.Delta) -> list[bytes]:
        if not self._options.logprobs or not delta.logprobs:
            return []
        entries = answer.logprob_entries(delta.logprobs)
        self.logprob_bytes += sum(map(len, entries))
        return entries


def delta_of(choice: generation_pb.Choice) -> generation_pb.Delta:
    """A complete answer as one piece."""
    calls = [
        generation_pb.ToolCallDelta(
            index=index, id=call.id, name=call.name, arguments_json=call.arguments_json
        )
        for index, call in enumerate(choice.tool_calls)
    ]
    return generation_pb.Delta(
        text=choice.text, reasoning=choice.reasoning, tool_calls=calls, logprobs=choice.logprobs
    )
