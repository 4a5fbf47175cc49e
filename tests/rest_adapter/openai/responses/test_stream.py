"""A response with many log probabilities while it is streamed: its memory counts, and its end comes piece by piece."""

from __future__ import annotations

from collections.abc import AsyncIterator
import json
from typing import Any
import zlib

import pytest

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from rest_adapter.errors import ApiError, of_reason
from rest_adapter.openai.responses.in_flight import InFlight
from rest_adapter.openai.responses.resource import Beginning
from rest_adapter.openai.responses.schema import parse_responses
from rest_adapter.openai.responses.stream import ResponseEvents
from rest_adapter.openai.responses.writer import ResponseWriter
from rest_adapter.reply import FREE_BYTES


TOKENS = 2000
ENDING = (
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
)


def token(number: int) -> usage_pb.TokenLogprob:
    return usage_pb.TokenLogprob(
        token_id=number, token="word", bytes=b"word", logprob=-1 / 3, rank=number
    )


class Events:
    """The rest of an answer of so many tokens."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    def cancel(self) -> None:
        pass

    async def __aiter__(self) -> AsyncIterator[chat_pb.StreamChatCompletionResponse]:
        entry = usage_pb.LogprobEntry(chosen=token(1), top=map(token, range(1, 21)))
        for _ in range(self._tokens):
            delta = generation_pb.Delta(text="word", logprobs=[entry])
            yield chat_pb.StreamChatCompletionResponse(delta=delta)
        finished = generation_pb.Finished(reason=usage_pb.FINISH_REASON_STOP)
        yield chat_pb.StreamChatCompletionResponse(finished=finished)
        yield chat_pb.StreamChatCompletionResponse(usage=usage_pb.Usage(completion_tokens=9))


class Stream:
    """A streamed response, what it takes, and what was kept of it."""

    def __init__(self, tokens: int, *, stored: bool = False, room: int = 2**40) -> None:
        body = {"model": "m", "input": "a", "stream": True, "top_logprobs": 20}
        asked, _ = parse_responses(body)
        started = generation_pb.Started(request_id="r", model="m")
        beginning = Beginning(asked=asked, response_id="resp", stored=stored, started=started)
        self.writer = ResponseWriter(beginning, is_streamed=True)
        self.taken: list[int] = []
        self.room = room
        self.kept: list[tuple[dict[str, Any], bytes]] = []
        events: Any = Events(tokens)
        self.events = ResponseEvents(
            events,
            aiter(events),
            self.writer,
            caller="",
            in_flight=InFlight(),
            keep=self.keep,
            take=self.take,
            param_of=lambda _: None,
        )

    def take(self, count: int) -> None:
        self.taken.append(count)
        if sum(self.taken) > self.room:
            raise of_reason("QUEUE_FULL", "no room", retry_after_s=1)

    async def keep(self) -> None:
        self.kept.append((self.writer.resource, self.writer.packed_frames()))


def kinds_in(frames: bytes) -> list[str]:
    return [
        json.loads(frame.partition(b"\ndata: ")[2])["type"] for frame in frames.split(b"\n\n")[:-1]
    ]


@pytest.mark.parametrize("stored", [True, False])
async def test_the_last_events_come_one_by_one(stored: bool) -> None:
    stream = Stream(TOKENS, stored=stored)
    pieces = [piece async for piece in stream.events]
    assert tuple(kind for piece in pieces[-4:] for kind in kinds_in(piece)) == ENDING
    assert all(len(kinds_in(piece)) == 1 for piece in pieces[-4:])
    assert len(pieces[-1]) > TOKENS * 1000  # all log probabilities
    assert sum(stream.taken) > 2 * len(pieces[-1])
    (resource, packed), *others = stream.kept
    assert not others
    assert resource["status"] == "completed"
    if stored:
        assert zlib.decompress(packed) == b"".join(pieces)
        assert stream.writer.num_bytes < 2 * len(pieces[-1])


async def test_what_is_small_takes_nothing() -> None:
    """So that it never fails for want of memory."""
    stream = Stream(20, room=0)
    assert [kinds_in(piece)[-1] async for piece in stream.events][-1] == ENDING[-1]
    assert not stream.taken


async def test_without_memory_it_fails_as_a_response() -> None:
    stream = Stream(TOKENS, stored=True, room=2 * FREE_BYTES)
    pieces: list[bytes] = []

    async def read() -> None:
        async for piece in stream.events:
            pieces.append(piece)

    with pytest.raises(ApiError) as failure:
        await read()
    pieces.append(stream.events.render_error(failure.value))
    assert kinds_in(pieces[-1]) == ["response.failed"]
    assert kinds_in(pieces[-2]) == ["error"]
    [(resource, packed)] = stream.kept
    assert resource["status"] == "failed"
    assert zlib.decompress(packed) == b"".join(pieces)
    assert len(b"".join(pieces)) < 40 * FREE_BYTES
