"""Benchmark clients for both APIs of a server: send requests and time the arrival of tokens."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
import io
import itertools
import random
import time
from typing import Protocol
from urllib.parse import urlsplit

import grpc
import orjson
from PIL import Image, ImageDraw

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import model_service_pb2_grpc as model_grpc
from qwenvl.inference.v1 import sampling_pb2 as sampling_pb


QUESTION = "What is in this image?"
MESSAGE_LIMIT = 32 * 2**20


class BenchmarkError(Exception):
    """The server's response makes a measurement impossible."""


@dataclass(frozen=True, slots=True)
class Load:
    """The settings of all requests."""

    model: str
    tokens: int
    image_size: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Timing:
    """One request: seconds to the first token, per token after it, and between consecutive tokens."""

    first_token_s: float
    per_token_s: float
    gaps_s: tuple[float, ...]
    tokens: int


def draw(size: int, seed: int) -> bytes:
    """A PNG of `size` x `size` pixels, different for every seed."""
    dice = random.Random(seed)

    def colour() -> tuple[int, int, int]:
        return dice.randrange(256), dice.randrange(256), dice.randrange(256)

    image = Image.new("RGB", (size, size), colour())
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = dice.randrange(size), dice.randrange(size)
        pen.ellipse((x, y, x + dice.randrange(8, size), y + dice.randrange(8, size)), fill=colour())
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def timing_of(start: float, arrivals: Sequence[tuple[float, int]]) -> Timing:
    """Computes the timing of a stream from its arrivals.

    Args:
        start: When the request was sent, in seconds.
        arrivals: (time, number of tokens) of every message with tokens; tokens in one message share its gap.
    """
    first = arrivals[0][0]
    tokens = sum(count for _, count in arrivals)
    gaps = [
        (later - earlier) / count
        for (earlier, _), (later, count) in itertools.pairwise(arrivals)
        for _ in range(count)
    ]
    per_token = (arrivals[-1][0] - first) / max(1, tokens - 1)
    return Timing(first - start, per_token, tuple(gaps), tokens)


def checked(start: float, arrivals: list[tuple[float, int]], load: Load) -> Timing:
    """The timing of a request; raises if its answer is not complete."""
    tokens = sum(count for _, count in arrivals)
    if tokens != load.tokens:
        raise BenchmarkError(f"an answer has {tokens} tokens instead of {load.tokens}")
    return timing_of(start, arrivals)


class ApiClient(Protocol):
    """A client of one of the APIs."""

    name: str

    def body(self, image: bytes) -> bytes:
        """Encodes a request ahead of time."""
        ...

    async def ask(self, body: bytes) -> Timing:
        """Sends it, reads the stream to its end and times it."""
        ...

    async def close(self) -> None:
        """Closes all connections."""
        ...


class GrpcClient:
    """Uses one channel, like the adapter; requests are serialised ahead of time."""

    name = "gRPC"

    def __init__(self, target: str, load: Load) -> None:
        size = [
            ("grpc.max_send_message_length", MESSAGE_LIMIT),
            ("grpc.max_receive_message_length", MESSAGE_LIMIT),
        ]
        self._load = load
        self._channel = grpc.aio.insecure_channel(target, options=size)
        self._stream = self._channel.unary_stream(
            "/qwenvl.inference.v1.ChatService/StreamChatCompletion",
            request_serializer=bytes,
            response_deserializer=chat_pb.StreamChatCompletionResponse.FromString,
        )

    def body(self, image: bytes) -> bytes:
        """Encodes a request ahead of time."""
        tokens = self._load.tokens
        parts = [
            message_pb.Part(image=message_pb.Image(data=image)),
            message_pb.Part(text=QUESTION),
        ]
        spec = chat_pb.ChatCompletionSpec(
            model=self._load.model,
            messages=[message_pb.Message(role=message_pb.ROLE_USER, parts=parts)],
            sampling=sampling_pb.SamplingOptions(
                temperature=0, max_tokens=tokens, min_tokens=tokens, ignore_eos=True
            ),
            response=generation_pb.ResponseOptions(return_token_ids=True),
        )
        return chat_pb.StreamChatCompletionRequest(spec=spec).SerializeToString()

    async def ask(self, body: bytes) -> Timing:
        """Sends it, reads the stream to its end and times it."""
        start = time.perf_counter()
        arrivals = [
            (time.perf_counter(), len(event.delta.token_ids))
            async for event in self._stream(body, timeout=self._load.timeout_s)
            if event.delta.token_ids
        ]
        return checked(start, arrivals, self._load)

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()


class RestClient:
    """Uses kept-alive HTTP/1.1 connections on plain asyncio streams, to minimise the cost of the client."""

    name = "REST"

    def __init__(self, url: str, load: Load) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._load = load
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    def body(self, image: bytes) -> bytes:
        """Encodes a request ahead of time, including its headers."""
        uri = "data:image/png;base64," + base64.b64encode(image).decode()
        content = [
            {"type": "image_url", "image_url": {"url": uri}},
            {"type": "text", "text": QUESTION},
        ]
        tokens = self._load.tokens
        document = orjson.dumps(
            {
                "model": self._load.model,
                "messages": [{"role": "user", "content": content}],
                "temperature": 0,
                "max_tokens": tokens,
                "min_tokens": tokens,
                "ignore_eos": True,
                "return_token_ids": True,
                "stream": True,
            }
        )
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self._host}:{self._port}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(document)}\r\n\r\n"
        )
        return head.encode() + document

    async def ask(self, body: bytes) -> Timing:
        """Sends it, reads the stream to its end and times it."""
        arrivals: list[tuple[float, int]] = []
        async with asyncio.timeout(self._load.timeout_s):
            if self._idle:
                reader, writer = self._idle.pop()
            else:
                reader, writer = await asyncio.open_connection(self._host, self._port, limit=2**20)
            start = time.perf_counter()
            writer.write(body)
            await writer.drain()
            async for event in server_sent_events(reader):
                document = orjson.loads(event)
                if "error" in document:
                    raise BenchmarkError(f"REST: {document['error']}")
                arrivals += [
                    (time.perf_counter(), len(choice["token_ids"]))
                    for choice in document["choices"]
                    if choice.get("token_ids")
                ]
        self._idle.append((reader, writer))
        return checked(start, arrivals, self._load)

    async def close(self) -> None:
        """Closes the idle connections, which are all connections after a run."""
        for _, writer in self._idle:
            writer.close()
            await writer.wait_closed()


async def server_sent_events(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yields the data of every event of a chunked response, up to `[DONE]`, and reads the response to its end."""
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200") or b"transfer-encoding: chunked" not in head.lower():
        raise BenchmarkError(f"REST: {head.decode(errors='replace')} {await reader.read(2000)!r}")
    pending = b""
    while size := int(await reader.readline(), 16):
        pending += (await reader.readexactly(size + 2))[:-2]
        *events, pending = pending.split(b"\n\n")
        for event in events:
            if event.startswith(b"data: ") and event != b"data: [DONE]":
                yield event.removeprefix(b"data: ")
    await reader.readline()


async def canonical_model(target: str, timeout_s: float) -> str:
    """The first name that the server lists."""
    async with grpc.aio.insecure_channel(target) as channel:
        stub = model_grpc.ModelServiceStub(channel)
        answer = await stub.ListModels(model_pb.ListModelsRequest(), timeout=timeout_s)
    return str(answer.models[0].name)
