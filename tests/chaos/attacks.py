"""What one caller can try to take the service from the others; every attack is bounded in count, bytes and time.

Run in a process of their own, so that they do not slow the neighbour's client: `python -m tests.chaos.attacks NAME
PORT KEY SECONDS` prints one line of figures.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
import contextlib
import io
import os
import sys
import time

import grpc.aio
from PIL import Image

from qwenvl.descriptors import raise_descriptor_limit
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import completion_service_pb2_grpc as completion_grpc
from qwenvl.inference.v1 import message_pb2 as message_pb
from tests.chaos.http2 import Connection, message
from tests.chaos.more_attacks import MORE_ATTACKS
from tests.grpc_api.asking import spec_of, text_part, user


MIB = 2**20
CREATE = "/qwenvl.inference.v1.ChatService/CreateChatCompletion"
STREAM = "/qwenvl.inference.v1.ChatService/StreamChatCompletion"
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
YEARS = {"grpc-timeout": "99999999H"}
MODEL = "qwen-vl-demo"
ZEROS = message(bytes(31 * MIB - 1000), size=31 * MIB)


class Attack:
    """The target and the time of an attack."""

    def __init__(self, port: int, key: str, seconds: float) -> None:
        self.port = port
        self.key = key
        self.seconds = seconds

    @property
    def metadata(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"} if self.key else {}

    async def unfinished(self, method: str, connections: int, streams: int = 1) -> str:
        """Begins messages of 31 MiB and never ends them."""

        async def one() -> int:
            async with Connection.open(self.port) as connection:
                numbers = [
                    await connection.call(method, metadata=self.metadata | YEARS)
                    for _ in range(streams)
                ]
                sending = (connection.send(n, ZEROS, timeout_s=self.seconds) for n in numbers)
                return sum(await asyncio.gather(*sending))

        sent = sum(await asyncio.gather(*(one() for _ in range(connections))))
        return f"{sent / MIB:.1f} MiB sent"

    async def closed_window(self, method: str, streams: int, request: bytes) -> str:
        """Asks, and never opens the window for the answers."""
        async with Connection.open(self.port, window=0) as connection:
            for _ in range(streams):
                number = await connection.call(method, metadata=self.metadata | YEARS)
                await connection.send(number, message(request), end=True)
            await asyncio.sleep(self.seconds)
            return f"{len(connection.ended)} of {streams} streams ended"

    async def flood(self, callers: int, specs: Callable[[int], chat_pb.ChatCompletionSpec]) -> str:
        """Asks again at once whatever the answer is, with many callers at the same time."""
        outcomes: dict[str, int] = {}
        end = time.monotonic() + self.seconds

        async def hammer(number: int) -> None:
            async with self._channel() as channel:
                stub = chat_grpc.ChatServiceStub(channel)
                while time.monotonic() < end:
                    request = chat_pb.CreateChatCompletionRequest(spec=specs(number))
                    await self._try(stub.CreateChatCompletion, request, outcomes)

        await asyncio.gather(*map(hammer, range(callers)))
        return str(outcomes)

    async def once(self, requests: list[chat_pb.ChatCompletionSpec]) -> str:
        """Sends some requests at the same time, each once."""
        outcomes: dict[str, int] = {}
        async with self._channel() as channel:
            stub = chat_grpc.ChatServiceStub(channel)
            calls = (
                self._try(
                    stub.CreateChatCompletion,
                    chat_pb.CreateChatCompletionRequest(spec=spec),
                    outcomes,
                )
                for spec in requests
            )
            await asyncio.gather(*calls)
        return str(outcomes)

    async def same(self, spec: chat_pb.ChatCompletionSpec, count: int) -> str:
        """Sends a request many times at once; it is serialised only once."""
        outcomes: dict[str, int] = {}
        payload = chat_pb.CreateChatCompletionRequest(spec=spec).SerializeToString()
        async with self._channel() as channel:
            create: Callable[..., Awaitable[object]] = channel.unary_unary(
                CREATE, request_serializer=bytes
            )
            await asyncio.gather(*(self._try(create, payload, outcomes) for _ in range(count)))
        return str(outcomes)

    async def completions(self, prompts: list[str]) -> str:
        """Long text completions at the same time."""
        outcomes: dict[str, int] = {}
        async with self._channel() as channel:
            stub = completion_grpc.CompletionServiceStub(channel)
            calls = (
                self._try(
                    stub.CreateCompletion,
                    completion_pb.CreateCompletionRequest(
                        spec=completion_pb.CompletionSpec(model=MODEL, text=prompt)
                    ),
                    outcomes,
                )
                for prompt in prompts
            )
            await asyncio.gather(*calls)
        return str(outcomes)

    async def malformed(self, count: int) -> str:
        """Messages that are not protobuf."""
        async with Connection.open(self.port) as connection:
            for index in range(count):
                number = await connection.call(CREATE, metadata=self.metadata)
                await connection.send(number, message(bytes([255, index % 256]) * 8), end=True)
            try:
                async with asyncio.timeout(self.seconds):
                    while len(connection.ended) < count:  # noqa: ASYNC110 - nobody could set an event
                        await asyncio.sleep(0.02)
            except TimeoutError:
                if self.metadata or not connection.ended:
                    raise  # only strangers are answered ever later
            return f"{len(connection.ended)} streams ended"

    def _channel(self) -> grpc.aio.Channel:
        options = [
            ("grpc.max_send_message_length", -1),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        return grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=options)

    async def _try(
        self, method: Callable[..., Awaitable[object]], request: object, outcomes: dict[str, int]
    ) -> None:
        name = "OK"
        try:
            await method(request, metadata=tuple(self.metadata.items()), timeout=self.seconds + 20)
        except grpc.aio.AioRpcError as error:
            name = error.code().name
        outcomes[name] = outcomes.get(name, 0) + 1


def short(number: int) -> chat_pb.ChatCompletionSpec:
    return spec_of(f"Question {number}?", model=MODEL, sampling={"max_tokens": 32})


def growing_image(number: int) -> chat_pb.ChatCompletionSpec:
    """A few KB that become as many pixels as the model takes, eight times."""
    image = Image.new("1", (4096, 4096 - number))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    part = message_pb.Part(image=message_pb.Image(data=buffer.getvalue()))
    return spec_of(*[part] * 8, "?", model=MODEL, sampling={"max_tokens": 1})


def costly_images(count: int) -> list[chat_pb.ChatCompletionSpec]:
    """A large noisy photograph, which takes a worker half a second, many times over."""
    buffer = io.BytesIO()
    Image.effect_noise((3000, 3000), 90).save(buffer, "JPEG", quality=50, progressive=True)
    part = message_pb.Part(image=message_pb.Image(data=buffer.getvalue()))
    return [spec_of(part, f"{i}?", model=MODEL, sampling={"max_tokens": 1}) for i in range(count)]


def large_message() -> chat_pb.ChatCompletionSpec:
    """30 MiB that are no image."""
    part = message_pb.Part(image=message_pb.Image(data=bytes(15 * MIB)))
    return spec_of(part, part, "?", model=MODEL)


def many_frames() -> chat_pb.ChatCompletionSpec:
    """Six million frames of a video."""
    frame = b"\x0a\x03\x0a\x01x"  # Video.frames = 1, Image.data = 1
    part = message_pb.Part()
    part.ParseFromString(_field(3, frame * (6 * MIB)))
    return spec_of(part, "?", model=MODEL)


def many_parts(kind: bytes, count: int) -> chat_pb.ChatCompletionSpec:
    turn = message_pb.Message()
    turn.ParseFromString(kind * count)
    turn.role = message_pb.ROLE_USER
    return chat_pb.ChatCompletionSpec(model=MODEL, messages=[turn])


def long_chat(characters: int) -> chat_pb.ChatCompletionSpec:
    words = ("word " * (characters // 5 + 1))[:characters]
    return chat_pb.ChatCompletionSpec(model=MODEL, messages=[user(text_part(words))])


def _field(number: int, payload: bytes) -> bytes:
    head, size = bytearray((number << 3 | 2,)), len(payload)
    while size >= 128:
        head.append(size % 128 + 128)
        size //= 128
    head.append(size)
    return bytes(head) + payload


_HEALTH = b""
_ASKING = chat_pb.StreamChatCompletionRequest(
    spec=spec_of("Tell me everything.", model=MODEL, sampling={"max_tokens": 64})
).SerializeToString()

ATTACKS: dict[str, Callable[[Attack], Awaitable[str]]] = {
    "unfinished health checks": lambda a: a.unfinished(CHECK, 30),
    "unfinished watches": lambda a: a.unfinished(WATCH, 3, 20),
    "unfinished calls": lambda a: a.unfinished(CREATE, 24),
    "unfinished reflection": lambda a: a.unfinished(REFLECTION, 24),
    "closed window": lambda a: a.closed_window(STREAM, 256, _ASKING),
    "closed window of watches": lambda a: a.closed_window(WATCH, 256, _HEALTH),
    "hammering": lambda a: a.flood(100, short),
    "polite": lambda a: a.flood(8, short),
    "large messages": lambda a: a.same(large_message(), 48),
    "images that grow": lambda a: a.once([growing_image(i) for i in range(60)]),
    "costly images": lambda a: a.once(costly_images(40)),
    "many frames": lambda a: a.once([many_frames()]),
    "many parts": lambda a: a.once([many_parts(b"\x12\x00", 8 * MIB)]),
    "long chats": lambda a: a.once([long_chat(8 * MIB - 100)] * 6),
    "long completions": lambda a: a.completions(["word " * 400_000, "a" * 8 * MIB, "é" * 4 * MIB]),
    "malformed": lambda a: a.malformed(200),
    **MORE_ATTACKS,
}


async def launch(name: str, port: int, key: str, seconds: float) -> str:
    """Runs an attack in a process of its own and returns its figures."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.chaos.attacks", name, str(port), key, str(seconds)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(seconds + 120):
            output, _ = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    return output.decode().strip()


async def main() -> None:
    name, port, key, seconds = sys.argv[1:]
    os.nice(5)
    raise_descriptor_limit(8192)
    print(await ATTACKS[name](Attack(int(port), key, float(seconds))))


if __name__ == "__main__":
    asyncio.run(main())
