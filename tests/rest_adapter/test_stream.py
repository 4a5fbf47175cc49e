"""Server-sent events that every client can read: one line for each event, whatever separates lines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
import json
import math
import threading
from typing import Any

from fastapi import FastAPI
import httpx
from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
import requests

from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from rest_adapter import stream as stream_module
from rest_adapter.errors import internal
from rest_adapter.openai.completions.schema import parse_completion
from rest_adapter.openai.completions.stream import CompletionChunkWriter
from rest_adapter.openai.dialect import OPENAI
from rest_adapter.paced import PIECE_BYTES
from rest_adapter.stream import EventStream
from tests.rest_adapter.conftest import Adapter
from tests.rest_adapter.raw_http import CHAT


# All at which `str.splitlines` splits.
SEPARATORS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


def body_of(text: str) -> dict:
    messages = [{"role": "user", "content": text}]
    return {"model": "demo", "stream": True, "messages": messages}


def text_in(lines: list[str]) -> str:
    """The text in lines of events, as a simple client reads them."""
    assert all(line == "" or line.startswith("data: ") for line in lines), lines
    chunks = [line.removeprefix("data: ") for line in lines if line]
    assert chunks.pop() == "[DONE]"
    choices = [choice for chunk in chunks for choice in json.loads(chunk)["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices)


@pytest.mark.parametrize("separator", SEPARATORS)
def test_separators_do_not_split_events(adapter: Adapter, separator: str) -> None:
    text = f"a{separator}b{separator}\\u2028"
    response = requests.post(adapter.url + CHAT, json=body_of(text), timeout=10)
    assert text_in(response.content.decode().splitlines()) == text
    with httpx.stream("POST", adapter.url + CHAT, json=body_of(text), timeout=10) as streamed:
        assert text_in(list(streamed.iter_lines())) == text
    with requests.post(adapter.url + CHAT, json=body_of(text), stream=True, timeout=10) as raw:
        assert text_in(list(raw.iter_lines(decode_unicode=True))) == text


@settings(max_examples=30, deadline=None)
@given(st.text(st.sampled_from(SEPARATORS + '\\"u2028é日😀\0'), min_size=1, max_size=20))
def test_any_text_comes_back(shared_adapter: Adapter, text: str) -> None:
    response = requests.post(shared_adapter.url + CHAT, json=body_of("=" + text), timeout=10)
    assert text_in(response.content.decode().splitlines()) == "=" + text


def test_separators_in_an_error_event(adapter: Adapter) -> None:
    response = requests.post(adapter.url + CHAT, json=body_of("fail-after 3"), timeout=10)
    last = response.content.decode().splitlines()[-2]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["code"] == "overloaded"
    assert error["request_id"] == response.headers["x-request-id"]


@pytest.mark.parametrize(("size", "beside"), [(100, False), (2**20, True)])
async def test_large_events_are_rendered_beside_the_loop(size: int, beside: bool) -> None:
    """The log probabilities of a long prompt take seconds, and come in one event."""
    threads: list[int] = []

    class Events:
        def cancel(self) -> None:
            pass

        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"data: {}\n\n"

    def render(event: bytes) -> bytes:
        threads.append(threading.get_ident())
        return event

    async def receive() -> Any:
        await asyncio.Event().wait()

    sent: list[bytes] = []

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    app = FastAPI()
    app.state.dialects = [OPENAI]
    scope = {"type": "http", "app": app, "path": "/v1/chat/completions", "headers": []}
    stream = EventStream(
        Events(), render, heartbeat_s=60, to_error=lambda _: internal(), size_of=lambda _: size
    )
    await stream(scope, receive, send)
    assert b"data: {}\n\n" in sent
    assert (threads != [threading.get_ident()]) == beside


def test_what_is_held_back_counts_with_the_event_that_releases_it() -> None:
    body = {"model": "m", "prompt": "a", "stream": True, "prompt_logprobs": 1}
    request, _ = parse_completion(body)
    writer = CompletionChunkWriter(request, "r", "1")
    entry = usage_pb.LogprobEntry(chosen=usage_pb.TokenLogprob(token="x" * 1000))
    piece = generation_pb.Delta(prompt_logprobs=[entry] * 50)
    started = generation_pb.Started(prompt_usage=usage_pb.Usage(prompt_tokens=100))
    sizes = []
    for what in (
        completion_pb.StreamCompletionResponse(started=started),
        completion_pb.StreamCompletionResponse(delta=piece),
        completion_pb.StreamCompletionResponse(delta=piece),
        completion_pb.StreamCompletionResponse(delta=generation_pb.Delta(text="b")),
        completion_pb.StreamCompletionResponse(delta=generation_pb.Delta(text="b")),
    ):
        sizes.append(writer.size_of((0, what)))
        writer.render((0, what))
    assert sizes[0] < 1000
    assert sizes[1] > 50_000
    assert sizes[3] > 100_000  # it opens the choice
    assert sizes[4] < 100


LARGE_EVENT = b"data: " + "\u2028x".encode() * 100_000 + b"\n\n"


class LargeEvents:
    """A small event, a large one, and a small one."""

    def cancel(self) -> None:
        pass

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for event in (b"data: 1\n\n", LARGE_EVENT, b"data: 2\n\n"):
            yield event


class Body:
    """That of a request, of whose answer so many pieces may be as slow as they like."""

    def __init__(self, pieces: float = math.inf) -> None:
        self.left_s = math.inf if pieces else 0.0
        self._pieces = pieces

    def pace_of_answer(self) -> Body:
        return self

    def note(self, count: int) -> None:
        self._pieces -= 1
        self.left_s = 3600.0 if self._pieces > 0 else 0.0


async def stream_of(
    send: Callable[[Any], Awaitable[None]], body: Body, heartbeat_s: float = 60
) -> None:
    async def receive() -> Any:
        await asyncio.Event().wait()

    app = FastAPI()
    app.state.dialects = [OPENAI]
    scope = {
        "type": "http",
        "app": app,
        "path": "/v1/chat/completions",
        "headers": [],
        "state": {"body": body},
    }
    stream = EventStream(
        LargeEvents(),
        lambda event: event,
        heartbeat_s=heartbeat_s,
        to_error=lambda _: internal(),
        size_of=len,
    )
    await stream(scope, receive, send)


async def test_large_events_are_sent_in_pieces_with_nothing_between() -> None:
    """One write of 64 MiB stops the loop, and would be copied as a whole."""
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))
        for _ in range(10):  # the heartbeat, which is due at once, could come now
            await asyncio.sleep(0)

    await stream_of(send, Body(), heartbeat_s=0.0)
    whole = b"".join(sent)
    assert max(map(len, sent)) <= PIECE_BYTES
    assert OPENAI.heartbeat in sent
    events = [event for event in whole.split(b"\n\n") if event.startswith(b"data: ")]
    assert events == [
        b"data: 1",
        LARGE_EVENT.replace("\u2028".encode(), b"\\u2028").rstrip(b"\n"),
        b"data: 2",
        b"data: [DONE]",
    ]


async def test_large_events_are_escaped_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: dict[int, int] = {}

    def noted(events: bytes) -> bytes:
        threads[len(events)] = threading.get_ident()
        return events

    monkeypatch.setattr(stream_module, "on_one_line", noted)

    async def send(_: Any) -> None:
        pass

    await stream_of(send, Body())
    assert threads[len(LARGE_EVENT)] != threading.get_ident()
    assert threads[len(b"data: 1\n\n")] == threading.get_ident()


@pytest.mark.parametrize("cancelled", [False, True])
async def test_nothing_follows_an_event_that_was_cut(cancelled: bool) -> None:
    """Neither its end nor an error: the client would read them as a part of it."""
    sent: list[Any] = []
    stuck = asyncio.Event()

    async def send(message: Any) -> None:
        if len(message.get("body", b"")) == PIECE_BYTES and len(sent) > 4:
            stuck.set()
            await asyncio.Event().wait()
        sent.append(message)

    task = asyncio.create_task(stream_of(send, Body(math.inf if cancelled else 3)))
    await stuck.wait()
    if cancelled:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        await task  # the client was too slow
    assert all(message["more_body"] for message in sent[1:])
    assert len(sent[-1]["body"]) == PIECE_BYTES
