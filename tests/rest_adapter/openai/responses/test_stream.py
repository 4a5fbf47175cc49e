"""A response with many log probabilities while it is streamed: its memory counts, and its end comes piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
import contextlib
import json
import threading
from typing import Any
import zlib

import pytest

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from rest_adapter.errors import ApiError, internal, of_reason, stopping
from rest_adapter.openai.responses import writer
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
    """The rest of an answer of so many tokens.

    Args:
        tokens: Their number.
        failing: Where it fails: after "tokens" or after "usage".
    """

    def __init__(self, tokens: int, failing: str = "") -> None:
        self._tokens = tokens
        self._failing = failing

    def cancel(self) -> None:
        pass

    async def __aiter__(self) -> AsyncIterator[chat_pb.StreamChatCompletionResponse]:
        entry = usage_pb.LogprobEntry(chosen=token(1), top=map(token, range(1, 21)))
        for _ in range(self._tokens):
            delta = generation_pb.Delta(text="word", logprobs=[entry])
            yield chat_pb.StreamChatCompletionResponse(delta=delta)
        self._fail("tokens")
        finished = generation_pb.Finished(reason=usage_pb.FINISH_REASON_STOP)
        yield chat_pb.StreamChatCompletionResponse(finished=finished)
        yield chat_pb.StreamChatCompletionResponse(usage=usage_pb.Usage(completion_tokens=9))
        self._fail("usage")

    def _fail(self, where: str) -> None:
        if where == self._failing:
            raise of_reason("GPU_OUT_OF_MEMORY", "no GPU")


class Stream:
    """A streamed response, what it takes, and what was kept of it."""

    def __init__(
        self,
        tokens: int,
        *,
        stored: bool = False,
        room: int = 2**40,
        failing: str = "",
        instructions: str = "",
    ) -> None:
        body = {"model": "m", "input": "a", "stream": True, "top_logprobs": 20}
        body["instructions"] = instructions
        asked, _ = parse_responses(body)
        started = generation_pb.Started(request_id="r", model="m")
        beginning = Beginning(asked=asked, response_id="resp", stored=stored, started=started)
        self.writer = ResponseWriter(beginning, is_streamed=True)
        self.taken: list[int] = []
        self.room = room
        self.kept: list[tuple[dict[str, Any], bytes]] = []
        self.failure: Exception | None = None
        self.keeping: Callable[[], Awaitable[None]] | None = None
        events: Any = Events(tokens, failing)
        self.events = ResponseEvents(
            events,
            aiter(events),
            self.writer,
            caller="",
            in_flight=InFlight(),
            keep=self.keep,
            body_bytes=len(json.dumps(body)),
            take=self.take,
            param_of=lambda _: None,
        )

    def take(self, count: int) -> None:
        self.taken.append(count)
        if sum(self.taken) > self.room:
            raise of_reason("QUEUE_FULL", "no room", retry_after_s=1)

    async def keep(self) -> None:
        if self.keeping is not None:
            await self.keeping()
        self.kept.append((self.writer.resource, self.writer.packed_frames()))


def events_in(frames: bytes) -> list[dict[str, Any]]:
    return [json.loads(frame.partition(b"\ndata: ")[2]) for frame in frames.split(b"\n\n")[:-1]]


def kinds_in(frames: bytes) -> list[str]:
    return [event["type"] for event in events_in(frames)]


def numbers_in(frames: bytes) -> list[int]:
    return [event["sequence_number"] for event in events_in(frames)]


async def all_of(stream: Stream, pieces: list[bytes] | None = None) -> list[bytes]:
    """All frames, as `EventStream` sends them."""
    pieces = [] if pieces is None else pieces
    try:
        async for piece in stream.events:
            pieces.append(piece)
    except (ApiError, RuntimeError) as error:
        stream.failure = error
        pieces.append(
            stream.events.render_error(error if isinstance(error, ApiError) else internal())
        )
    return [piece for piece in pieces if piece]


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
    pieces = await all_of(stream)
    assert isinstance(stream.failure, ApiError)
    assert kinds_in(pieces[-1]) == ["response.failed"]
    assert kinds_in(pieces[-2]) == ["error"]
    [(resource, packed)] = stream.kept
    assert resource["status"] == "failed"
    assert zlib.decompress(packed) == b"".join(pieces)
    assert len(b"".join(pieces)) < 40 * FREE_BYTES


@pytest.mark.parametrize("tokens", [3, 300])
@pytest.mark.parametrize("failing", ["", "tokens"])
@pytest.mark.parametrize("error", [of_reason("QUEUE_FULL", "full"), RuntimeError("a defect")])
async def test_what_cannot_be_kept_ends_as_a_failure(
    error: Exception, failing: str, tokens: int
) -> None:
    stream = Stream(tokens, stored=True, failing=failing)

    async def fail() -> None:
        raise error

    stream.keeping = fail
    frames = b"".join(await all_of(stream))
    assert kinds_in(frames)[-2:] == ["error", "response.failed"]
    numbers = numbers_in(frames)
    assert numbers == sorted(numbers)
    assert stream.failure is error
    assert not stream.kept


@pytest.mark.parametrize("tokens", [3, 300])
async def test_a_failure_after_the_end_is_not_told(tokens: int) -> None:
    stream = Stream(tokens, stored=True, failing="usage")
    frames = b"".join(await all_of(stream))
    assert tuple(kinds_in(frames)[-4:]) == ENDING
    assert frames.count(b"event: error") == 0
    assert isinstance(stream.failure, ApiError)
    [(resource, packed)] = stream.kept
    assert resource["status"] == "completed"
    assert zlib.decompress(packed) == frames


@pytest.mark.parametrize("failing", ["", "tokens"])
async def test_a_stream_that_is_stopped_while_it_is_kept_has_an_end(failing: str) -> None:
    stream = Stream(3, stored=True, failing=failing)
    begun = asyncio.Event()

    async def hang() -> None:
        begun.set()
        await asyncio.Event().wait()

    stream.keeping = hang
    pieces: list[bytes] = []
    task = asyncio.create_task(all_of(stream, pieces))
    await begun.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    last = stream.events.render_error(stopping())
    assert kinds_in(last) == ["error", "response.failed"]
    numbers = numbers_in(b"".join(pieces) + last)
    assert numbers == sorted(numbers)


async def test_a_stream_that_is_stopped_anywhere_has_one_end() -> None:
    """A frame that the client has not taken when the stream is stopped is not sent."""
    count = len([piece async for piece in Stream(3, stored=True).events])
    for sent in range(count + 1):
        stream = Stream(3, stored=True)
        reader: Any = aiter(stream.events)
        frames = b""
        for _ in range(sent):
            frames += await anext(reader)
        # The reader asks for the next one as soon as it has sent one, and is stopped while it sends that.
        await anext(reader, None)
        frames += stream.events.render_error(stopping())
        ends = [
            kind for kind in kinds_in(frames) if kind in ("response.completed", "response.failed")
        ]
        assert ends == ["response.failed" if sent < count else "response.completed"]
        await reader.aclose()


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize(("length", "beside"), [(100, False), (FREE_BYTES, True)])
async def test_what_a_response_repeats_is_written_beside_the_event_loop(
    length: int, beside: bool, stored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All frames that have it, of the beginning and the end; and it counts as memory."""
    threads: dict[str, set[int]] = {}

    def noted(event: dict[str, Any], number: int) -> bytes:
        if "response" in event:
            threads.setdefault(event["type"], set()).add(threading.get_ident())
        return frame(event, number)

    frame = writer._frame
    monkeypatch.setattr(writer, "_frame", noted)
    stream = Stream(3, stored=stored, instructions="x" * length)
    assert kinds_in((await all_of(stream))[-1]) == [ENDING[-1]]
    assert len(threads) == 3
    on_loop = {kind for kind, idents in threads.items() if threading.get_ident() in idents}
    assert on_loop == (set() if beside else set(threads))
    assert bool(stream.taken) == beside
