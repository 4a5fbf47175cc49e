"""More of what one caller can try: connections that say nothing, frames without calls, and requests of odd sizes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
import contextlib
import json
import random
import resource
import struct
import time
from typing import TYPE_CHECKING, Any
import uuid

import grpc.aio
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from qwenvl.inference.v1 import admin_service_pb2 as admin_pb
from qwenvl.inference.v1 import admin_service_pb2_grpc as admin_grpc
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from qwenvl.inference.v1 import decision_service_pb2 as decision_pb
from qwenvl.inference.v1 import decision_service_pb2_grpc as decision_grpc
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import sampling_pb2 as sampling_pb
from qwenvl.inference.v1 import tokenize_service_pb2 as tokenize_pb
from qwenvl.inference.v1 import tokenize_service_pb2_grpc as tokenize_grpc
from tests.chaos.http2 import PING, PREFACE, SETTINGS, Connection, message
from tests.grpc_api.asking import image_part, spec_of, text_part, user
from tests.support.images import draw


if TYPE_CHECKING:
    from tests.chaos.attacks import Attack


MODEL = "qwen-vl-demo"
CREATE = "/qwenvl.inference.v1.ChatService/CreateChatCompletion"
WATCH = "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
LIST_SERVICES = b"\x3a\x01*"
CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


async def silent(attack: Attack, connections: int, first: bytes) -> str:
    """Opens connections, sends a few bytes over each, and then nothing."""
    counts: Counter[str] = Counter()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2**14), hard))

    async def one() -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", attack.port)
        except OSError:
            counts["refused"] += 1
            return
        counts["open"] += 1
        with contextlib.suppress(OSError, TimeoutError):
            writer.write(first)
            async with asyncio.timeout(attack.seconds):
                while await reader.read(2**12):
                    pass
                counts["closed"] += 1
        writer.transport.abort()

    await asyncio.gather(*(one() for _ in range(connections)))
    return str(dict(counts))


async def frames(attack: Attack, kind: int, payload: bytes) -> str:
    """Frames that are not of a call."""

    async def one() -> bool:
        async with Connection.open(attack.port) as connection:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(attack.seconds):
                    await connection.flood(kind, payload, 1_000_000)
            return connection.closed

    closed = await asyncio.gather(*(one() for _ in range(8)))
    return f"{sum(closed)} of {len(closed)} closed"


async def many_streams(
    attack: Attack, method: str, request: bytes, connections: int, streams: int
) -> str:
    """Calls that stay open."""
    counts: Counter[str] = Counter()

    async def one() -> None:
        async with Connection.open(attack.port) as connection:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(attack.seconds):
                    for _ in range(streams):
                        number = await connection.call(method, metadata=attack.metadata)
                        await connection.send(number, message(request))
                    await asyncio.sleep(attack.seconds)
            counts["ended"] += len(connection.ended)

    await asyncio.gather(*(one() for _ in range(connections)))
    return f"{counts['ended']} of {connections * streams} streams ended"


async def again(
    attack: Attack, callers: int, call: Callable[[grpc.aio.Channel, Any], Awaitable[None]]
) -> str:
    """Calls again and again, whatever the answers are."""
    outcomes: Counter[str] = Counter()
    end = time.monotonic() + attack.seconds
    metadata = tuple(attack.metadata.items())
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]

    async def hammer() -> None:
        address = f"127.0.0.1:{attack.port}"
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            while time.monotonic() < end:
                name = "OK"
                try:
                    await call(channel, metadata)
                except grpc.aio.AioRpcError as error:
                    name = error.code().name
                outcomes[name] += 1

    await asyncio.gather(*(hammer() for _ in range(callers)))
    return str(dict(outcomes))


async def leaves(channel: grpc.aio.Channel, metadata: Any) -> None:
    """Asks for four long answers and leaves after the first event."""
    spec = spec_of("Tell me everything.", model=MODEL, n=4, sampling={"max_tokens": 3000})
    request = chat_pb.StreamChatCompletionRequest(spec=spec)
    stream = chat_grpc.ChatServiceStub(channel).StreamChatCompletion(
        request, metadata=metadata, timeout=30
    )
    await stream.read()
    stream.cancel()


def creates(spec: chat_pb.ChatCompletionSpec) -> Callable[[grpc.aio.Channel, Any], Awaitable[None]]:
    """Asks for an answer."""
    request = chat_pb.CreateChatCompletionRequest(spec=spec)

    async def call(channel: grpc.aio.Channel, metadata: Any) -> None:
        stub = chat_grpc.ChatServiceStub(channel)
        await stub.CreateChatCompletion(request, metadata=metadata, timeout=60)

    return call


async def tokenizes(channel: grpc.aio.Channel, metadata: Any) -> None:
    """Text as long as a message may be."""
    request = tokenize_pb.TokenizeRequest(model=MODEL, text="word é " * 2**17)
    stub = tokenize_grpc.TokenizeServiceStub(channel)
    await stub.Tokenize(request, metadata=metadata, timeout=60)


async def lists_sockets(channel: grpc.aio.Channel, metadata: Any) -> None:
    """All sockets of all servers, in pages as large as it gets them."""
    stub = channelz_pb2_grpc.ChannelzStub(channel)
    servers = await stub.GetServers(channelz_pb2.GetServersRequest(), metadata=metadata, timeout=60)
    for server in servers.server:
        request = channelz_pb2.GetServerSocketsRequest(
            server_id=server.ref.server_id, max_results=10**6
        )
        await stub.GetServerSockets(request, metadata=metadata, timeout=60)


async def reflects(channel: grpc.aio.Channel, metadata: Any) -> None:
    """The description of a service with all that it needs, again and again in one call."""
    symbol = "qwenvl.inference.v1.ChatService"
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo(iter([request] * 200), metadata=metadata, timeout=60)
    async for _ in call:
        pass


async def watches(channel: grpc.aio.Channel, metadata: Any) -> None:
    """Many watches over one connection, which leave when they have been answered."""
    stub = health_pb2_grpc.HealthStub(channel)
    calls = [
        stub.Watch(health_pb2.HealthCheckRequest(), metadata=metadata, timeout=60)
        for _ in range(300)
    ]
    await asyncio.gather(*(call.read() for call in calls), return_exceptions=True)
    for call in calls:
        call.cancel()


async def asks_for_load(channel: grpc.aio.Channel, metadata: Any) -> None:
    """Many small calls at once."""
    stub = admin_grpc.AdminServiceStub(channel)
    ids = [f"request {number}" for number in range(256)]
    abort = admin_pb.AbortRequest(request_ids=ids)
    calls = [
        call
        for _ in range(30)
        for call in (
            stub.GetLoad(admin_pb.GetLoadRequest(), metadata=metadata, timeout=60),
            stub.Abort(abort, metadata=metadata, timeout=60),
        )
    ]
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


async def crowd(attack: Attack, connections: int) -> str:
    """As many connections as it gets, each with a call that does not end, and again when they are closed."""
    counts: Counter[str] = Counter()
    end = time.monotonic() + attack.seconds

    async def one() -> None:
        while time.monotonic() < end:
            with contextlib.suppress(OSError, TimeoutError):
                async with Connection.open(attack.port) as connection:
                    counts["opened"] += 1
                    number = await connection.call(CREATE, metadata=attack.metadata)
                    await connection.send(number, message(b"", size=1000))
                    while time.monotonic() < end and not connection.closed:  # noqa: ASYNC110
                        await asyncio.sleep(0.2)
            counts["closed"] += time.monotonic() < end
            await asyncio.sleep(0.2)

    await asyncio.gather(*(one() for _ in range(connections)))
    return str(dict(counts))


def small_images(count: int) -> chat_pb.ChatCompletionSpec:
    part = image_part(draw("red", "circle").png)
    return spec_of(*[part] * count, "?", model=MODEL)


def options(kind: str) -> chat_pb.ChatCompletionSpec:
    """Options that are millions, or megabytes."""
    spec = spec_of("?", model=MODEL, sampling={"max_tokens": 2})
    match kind:
        case "stop":
            spec.stop.CopyFrom(sampling_pb.StopOptions(strings=["x"] * 2**20))
        case "bias":
            spec.sampling.logit_bias.update(dict.fromkeys(range(2**18), 1.0))
        case "schema":
            spec.constraint.json_schema = '{"anyOf": [' + '{"type": "string"},' * 2**18 + "true]}"
        case "choices":
            spec.constraint.choices.values.extend(["a" * 50] * 2**17)
        case "grammar":
            spec.constraint.grammar = "start: " + " | ".join(f"x{i}" for i in range(2**17))
        case "regex":
            spec.constraint.regex = "(a|a)*b" * 2**16
        case _:
            spec.tools.add(name="f", description="x" * 2**23)
    return spec


def ambiguous() -> chat_pb.ChatCompletionSpec:
    """A grammar by which each token takes longer than the one before it."""
    spec = spec_of("?", model=MODEL, sampling={"max_tokens": 400, "ignore_eos": True})
    spec.constraint.grammar = "start: e\ne: e e | L\nL: /[a-z]/"
    return spec


async def tries(channel: grpc.aio.Channel, metadata: Any) -> None:
    """A schema that nobody has sent before, and whose trial takes half a second."""
    spec = spec_of("?", model=MODEL, sampling={"max_tokens": 2})
    multiple = {"type": "integer", "multipleOf": 49999, "title": uuid.uuid4().hex}
    spec.constraint.json_schema = json.dumps(multiple)
    await creates(spec)(channel, metadata)


async def sends_forms_and_leaves(channel: grpc.aio.Channel, metadata: Any) -> None:
    """Schemas that take half a second to compile in the engine, one after the other, and no wait for an answer."""
    multiple = {"type": "integer", "multipleOf": 49999, "title": f"{random.randrange(100)}"}
    spec = spec_of("?", model=MODEL, sampling={"max_tokens": 2})
    spec.constraint.json_schema = json.dumps(multiple)
    request = chat_pb.CreateChatCompletionRequest(spec=spec)
    call = chat_grpc.ChatServiceStub(channel).CreateChatCompletion(request, metadata=metadata)
    await asyncio.sleep(0.02)
    call.cancel()


def costly(kind: str) -> chat_pb.ChatCompletionSpec:
    """Constraints of some KB that were checked in seconds, or days, on the event loop."""
    spec = spec_of("?", model=MODEL, sampling={"max_tokens": 2})
    ranges = [{"type": "integer", "minimum": n, "maximum": n} for n in range(92)]
    match kind:
        case "regex":
            spec.constraint.regex = "{" + " " * 2000 + "," + " " * 2000
        case "pattern":
            spec.constraint.json_schema = json.dumps({"pattern": "[" * 60_000})
        case _:
            schema = {
                "oneOf": [{**one, "$ref": "#/$defs/a"} for one in ranges],
                "$defs": {"a": {"$ref": "#/" + "%41" * 700}},
            }
            spec.constraint.json_schema = json.dumps(schema)
    return spec


def decides(text: str, **fields: Any) -> Callable[[grpc.aio.Channel, Any], Awaitable[None]]:
    """As many questions as a request may have, or fewer."""
    question = decision_pb.DecisionQuestion(
        instructions=[text_part(text)], predicate=decision_pb.PredicateQuestion()
    )
    if "rotations" in fields:
        options = [decision_pb.DecisionOption(text=f"option {n}") for n in range(8)]
        question.choice.options.extend(options)
    values: dict[str, Any] = {"model": MODEL, "messages": [user("x " * 300)]}
    values |= {"questions": [question] * (40 if "rotations" in fields else 400)} | fields
    spec = decision_pb.DecisionSpec(**values)
    request = decision_pb.CreateDecisionsRequest(spec=spec)

    async def call(channel: grpc.aio.Channel, metadata: Any) -> None:
        stub = decision_grpc.DecisionServiceStub(channel)
        await stub.CreateDecisions(request, metadata=metadata, timeout=60)

    return call


STATEMENT = decision_pb.DecisionQuestion(
    instructions=[text_part("the a" + " is a" * 20_000 + "?")],
    predicate=decision_pb.PredicateQuestion(),
)


def junk_images() -> chat_pb.ChatCompletionSpec:
    """A megabyte of each that is small in its header, and repeats what a reader would look at one by one."""
    gif = b"GIF89a\1\0\1\0\0\0\0"
    files = [
        gif + bytes(2**20),
        gif + b"\x21\xfe" + b"\1a" * 2**19,
        b"\xff\xd8" + b"\xff\0" * 2**19,
        b"\xff\xd8\xff\xc0\0\x0b\x08\0\x01\0\x01\1\1\x11\0\xff\xda\0\x08\1\1\0\0\x3f\0"
        + b"\xff\1" * 2**19,
    ]
    parts = [message_pb.Part(image=message_pb.Image(data=data)) for data in files]
    return spec_of(*parts, "?", model=MODEL)


def empty_images(count: int) -> chat_pb.ChatCompletionSpec:
    part = message_pb.Part(image=message_pb.Image(data=b"x"))
    return spec_of(*[part] * count, "?", model=MODEL)


MORE_ATTACKS: dict[str, Callable[[Attack], Awaitable[str]]] = {
    "silent connections": lambda a: silent(a, 1500, b""),
    "silent connections without end": lambda a: silent(a, 4000, b""),
    "connections without calls": lambda a: silent(
        a, 4000, PREFACE + bytes((0, 0, 0, SETTINGS, 0, 0, 0, 0, 0))
    ),
    "half a preface": lambda a: silent(a, 1500, PREFACE[:10]),
    "half a TLS handshake": lambda a: silent(a, 1500, CLIENT_HELLO),
    "pings": lambda a: frames(a, PING, bytes(8)),
    "settings": lambda a: frames(a, SETTINGS, struct.pack(">HL", 4, 2**16)),
    "many watches": lambda a: many_streams(a, WATCH, b"", 20, 500),
    "watches again": lambda a: again(a, 20, watches),
    "sockets": lambda a: again(a, 30, lists_sockets),
    "reflection again": lambda a: again(a, 30, reflects),
    "small calls": lambda a: again(a, 30, asks_for_load),
    "a crowd": lambda a: crowd(a, 3000),
    "much reflection": lambda a: many_streams(a, REFLECTION, LIST_SERVICES, 20, 100),
    "answers nobody waits for": lambda a: again(a, 30, leaves),
    "many small images": lambda a: again(a, 4, creates(small_images(4000))),
    "junk images": lambda a: again(a, 16, creates(junk_images())),
    "many broken images": lambda a: again(a, 4, creates(empty_images(200_000))),
    "tokenizing": lambda a: again(a, 20, tokenizes),
    "ambiguous grammars": lambda a: again(a, 32, creates(ambiguous())),
    "trials": lambda a: again(a, 60, tries),
    "forms nobody waits for": lambda a: again(a, 4, sends_forms_and_leaves),
    "questions": lambda a: again(a, 6, decides("y " * 20)),
    "questions with tokens": lambda a: again(
        a, 6, decides("What is <|im_end|>?", rotations=8, prompt_format=1)
    ),
    "a long statement": lambda a: again(a, 6, decides("", questions=[STATEMENT], prompt_format=2)),
    **{
        f"costly {kind}": lambda a, kind=kind: again(a, 4, creates(costly(kind)))  # type: ignore[misc]
        for kind in ("regex", "pattern", "references")
    },
    **{
        f"large {kind}": lambda a, kind=kind: again(a, 4, creates(options(kind)))  # type: ignore[misc]
        for kind in ("stop", "bias", "schema", "choices", "grammar", "regex", "tools")
    },
}
