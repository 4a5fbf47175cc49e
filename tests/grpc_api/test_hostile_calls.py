"""What callers may send, and how slowly, without taking the service from the others."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
from pathlib import Path
import threading
import time
import tracemalloc
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
import pytest

from inference_service.engine_client.interface import EngineState
from inference_service.engine_protocol.messages import EngineFailure
from inference_service.grpc_api import chat_service, requests
from inference_service.grpc_api.wire_fields import MAX_FIELDS, MAX_PACKED_BYTES
from qwenvl.inference.v1 import admin_service_pb2 as admin_pb
from qwenvl.inference.v1 import admin_service_pb2_grpc as admin_grpc
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import completion_service_pb2_grpc as completion_grpc
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import tokenize_service_pb2 as tokenize_pb
from qwenvl.inference.v1 import tokenize_service_pb2_grpc as tokenize_grpc
from tests.chaos.http2 import Connection, message
from tests.grpc_api.asking import read_event, refusal, spec_of, text_part, until, user
from tests.grpc_api.conftest import Service, channel_to
from tests.support.images import draw


MIB = 2**20
CHAT = "/qwenvl.inference.v1.ChatService"
ADMIN = "/qwenvl.inference.v1.AdminService"
HEALTH = "/grpc.health.v1.Health"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
UNFINISHED = message(bytes(2 * MIB), size=31 * MIB)
YEARS = {"grpc-timeout": "99999999H"}


@pytest.fixture
async def guarded(open_service, tmp_path: Path) -> Service:
    keys = tmp_path / "keys"
    keys.write_text("one\ntwo\n")
    return await open_service(api_key_file=str(keys))


def with_key(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


def asking(**fields: Any) -> bytes:
    request = chat_pb.StreamChatCompletionRequest(spec=spec_of("hello", **fields))
    return message(request.SerializeToString())


# ---- before a message is read ----


@pytest.mark.parametrize("method", [f"{CHAT}/CreateChatCompletion", f"{ADMIN}/GetLoad", REFLECTION])
async def test_nothing_of_a_message_is_read_without_a_key(guarded: Service, method: str) -> None:
    async with Connection.open(guarded.front.ports["grpc"]) as connection:
        stream = await connection.call(method)
        sent = await connection.send(stream, UNFINISHED, timeout_s=10)
        assert stream in connection.ended
        assert sent < MIB


async def test_nothing_of_a_message_is_read_when_the_queue_is_full(open_service) -> None:
    service = await open_service(max_queue=1)
    service.engine.hold_at = 1
    held = asyncio.ensure_future(service.create(spec_of("x")))
    await until(lambda: bool(service.engine.live))
    async with Connection.open(service.front.ports["grpc"]) as connection:
        stream = await connection.call(f"{CHAT}/CreateChatCompletion")
        sent = await connection.send(stream, UNFINISHED, timeout_s=10)
        assert stream in connection.ended
        assert sent < MIB
    service.engine.resume.set()
    await held


async def test_unfinished_messages_are_bounded_and_the_others_pass(open_service) -> None:
    """A budget of two messages: the third makes room, and a small message passes at any time."""
    service = await open_service(message_budget_mib=64)
    async with Connection.open(service.front.ports["grpc"]) as connection:
        streams = [await connection.call(f"{CHAT}/CreateChatCompletion") for _ in range(4)]
        sending = [
            asyncio.create_task(connection.send(stream, UNFINISHED, timeout_s=20))
            for stream in streams
        ]
        assert (await service.create(spec_of("hello"))).choices[0].text == "hello"
        await until(lambda: bool(connection.ended))
        for task in sending:
            task.cancel()


async def test_health_passes_beside_unfinished_health_checks(guarded: Service) -> None:
    async with Connection.open(guarded.front.ports["grpc"]) as connection:
        streams = [await connection.call(f"{HEALTH}/Check") for _ in range(30)]
        for stream in streams:
            await connection.send(stream, UNFINISHED[:1000])
        stub = health_pb2_grpc.HealthStub(guarded.channel)
        for _ in range(5):
            assert (await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)).status == 1
        await until(lambda: len(connection.ended) >= 26)


@pytest.mark.parametrize(("address", "host"), [("grpc", "127.0.0.2"), ("health", "127.0.0.1")])
async def test_probes_pass_beside_more_unfinished_checks_than_may_wait(
    open_service, address: str, host: str
) -> None:
    """From another host, and at the address for probes whoever keeps the public one busy."""
    service = await open_service(health_address="127.0.0.1:0")
    check = message(health_pb2.HealthCheckRequest(service="readiness").SerializeToString())
    public, probed = service.front.ports["grpc"], service.front.ports[address]
    async with Connection.open(public) as stranger, Connection.open(probed, host=host) as kubelet:
        for _ in range(8):
            for _ in range(100):
                await stranger.call(f"{HEALTH}/Check")
            probe = await kubelet.call(f"{HEALTH}/Check")
            await kubelet.send(probe, check, end=True)
            await until(functools.partial(kubelet.ended.__contains__, probe))
            assert kubelet.received.get(probe), "it was refused"


@pytest.mark.parametrize("name", ["Check", "Watch"])
async def test_a_health_check_has_no_long_name(service: Service, name: str) -> None:
    method: Any = service.channel.unary_stream(f"{HEALTH}/{name}")
    request = health_pb2.HealthCheckRequest(service="x" * 5000).SerializeToString()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await method(request, timeout=10).read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "5003 bytes" in (caught.value.details() or "")


# ---- what a message is ----


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (f"{CHAT}/CreateChatCompletion", "CreateChatCompletionRequest"),
        (f"{CHAT}/StreamChatCompletion", "StreamChatCompletionRequest"),
        (f"{CHAT}/CountTokens", "CountTokensRequest"),
        ("/qwenvl.inference.v1.CompletionService/CreateCompletion", "CreateCompletionRequest"),
        ("/qwenvl.inference.v1.ModelService/GetModel", "GetModelRequest"),
        (f"{ADMIN}/Abort", "AbortRequest"),
        (f"{HEALTH}/Check", "HealthCheckRequest"),
        (f"{HEALTH}/Watch", "HealthCheckRequest"),
        (REFLECTION, "ServerReflectionRequest"),
        (REFLECTION.replace("v1alpha", "v1"), "ServerReflectionRequest"),
    ],
)
@pytest.mark.parametrize("data", [b"\xff" * 9, b"\x0a\x05abc", b"\x0a\x01\xff", b"\x0b" * 4000])
async def test_malformed_bytes_are_an_invalid_argument(
    service: Service, caplog, method: str, name: str, data: bytes
) -> None:
    call: Any = service.channel.unary_unary(method)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(data, timeout=20)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    details = caught.value.details() or ""
    assert name in details
    assert "class" not in details
    assert "Error" not in details
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(lambda: [message_pb.Part()] * (MAX_FIELDS + 1), id="parts"),
        pytest.param(
            lambda: [
                message_pb.Part(
                    video=message_pb.Video(frames=[message_pb.Image(data=b"x")] * MAX_FIELDS)
                )
            ],
            id="frames",
        ),
    ],
)
async def test_a_message_with_too_many_fields_is_refused_before_it_is_parsed(
    service: Service, monkeypatch: pytest.MonkeyPatch, spec
) -> None:
    request = chat_pb.CreateChatCompletionRequest(spec=spec_of(*spec()))
    monkeypatch.setattr(
        "inference_service.grpc_api.chat_service.chat_request",
        lambda *_: pytest.fail("it was looked at"),
    )
    got = await refusal(service.chat.CreateChatCompletion(request, timeout=20))
    assert got.code is grpc.StatusCode.INVALID_ARGUMENT
    assert str(MAX_FIELDS) in got.message


@pytest.mark.parametrize("name", ["prompt", "allowed_token_ids", "stop"])
async def test_too_many_numbers_are_refused_before_they_are_parsed(
    service: Service, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """All of them are one field, and copying them would stop all other calls."""
    spec = completion_pb.CompletionSpec(text="" if name == "prompt" else "a")
    lists = {
        "prompt": spec.token_ids.ids,
        "allowed_token_ids": spec.sampling.allowed_token_ids,
        "stop": spec.stop.token_ids,
    }
    lists[name].extend([1] * (MAX_PACKED_BYTES + 1))
    monkeypatch.setattr(
        "inference_service.grpc_api.completion_service.text_completion_request",
        lambda *_: pytest.fail("it was looked at"),
    )
    stub = completion_grpc.CompletionServiceStub(service.channel)
    request = completion_pb.CreateCompletionRequest(spec=spec)
    got = await refusal(stub.CreateCompletion(request, timeout=20))
    assert got.code is grpc.StatusCode.INVALID_ARGUMENT
    assert str(MAX_PACKED_BYTES) in got.message


async def test_a_text_that_fits_no_window_is_refused_before_it_is_tokenised(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        type(service.model.prompts), "build", lambda *_: pytest.fail("it was tokenised")
    )
    # The vocabulary of the test has one token for each byte, and special tokens that users cannot write.
    for parts in (["x" * 9000], ["x" * 3000] * 3, ["é" * 9000]):
        got = await refusal(service.create(spec_of(*parts)))
        assert (got.info.reason, got.field) == ("CONTEXT_LENGTH_EXCEEDED", "spec.messages")
        assert got.info.metadata["max_context_tokens"] == "2048"
        assert "maximum context length is 2048 tokens" in got.message


async def test_a_large_malformed_message_is_refused_as_a_small_one(service: Service) -> None:
    call: Any = service.channel.unary_unary(f"{CHAT}/CreateChatCompletion")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\x0a\xff\xff\xff\x0f" + bytes(MIB), timeout=20)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_panic_in_a_thread_is_an_internal_error(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):
        pass

    def panic(*_: object) -> None:
        raise PanicException

    monkeypatch.setattr(type(service.model.prompts), "build", panic)
    got = await refusal(service.create(spec_of("x")))
    assert got.code is grpc.StatusCode.INTERNAL
    assert service.backend.in_flight == 0


async def test_a_long_text_does_not_delay_a_short_one(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = type(service.model.prompts).build
    loop, release = asyncio.get_running_loop(), asyncio.Event()

    def slow(self, request, images):
        if len(request.messages) > 1:
            asyncio.run_coroutine_threadsafe(release.wait(), loop).result(30)
        return build(self, request, images)

    monkeypatch.setattr(type(service.model.prompts), "build", slow)
    monkeypatch.setattr("inference_service.backend.prompts._LONG_CHARACTERS", 100)
    turns = [user(text_part("x" * 200))] * 2
    long_ones = [
        asyncio.ensure_future(service.create(spec_of(messages=turns, request_id=f"long{i}")))
        for i in range(6)
    ]
    await asyncio.sleep(0.05)
    assert (await service.create(spec_of("short"))).choices[0].text == "short"
    release.set()
    await asyncio.gather(*long_ones)


# ---- who does not read ----


async def test_a_reader_that_never_reads_is_cut_and_keeps_no_place(open_service) -> None:
    service = await open_service(send_timeout_s=0.3, max_num_seqs=1, max_queue=8)
    async with Connection.open(service.front.ports["grpc"], window=0) as connection:
        for index in range(8):
            stream = await connection.call(f"{CHAT}/StreamChatCompletion", metadata=YEARS)
            await connection.send(stream, asking(request_id=f"r{index}"), end=True)
        await until(lambda: len(service.engine.requests) == 8)  # the batch has few places
        await until(lambda: service.backend.in_flight == 0)
        assert (await service.create(spec_of("served"))).choices[0].text == "served"


async def test_a_unary_answer_that_is_not_read_is_cut_too(open_service) -> None:
    service = await open_service(send_timeout_s=0.3)
    async with Connection.open(service.front.ports["grpc"], window=0) as connection:
        stream = await connection.call(f"{CHAT}/CreateChatCompletion", metadata=YEARS)
        await connection.send(stream, asking(), end=True)
        await until(lambda: bool(service.engine.requests))
        await until(lambda: service.backend.in_flight == 0)


DETOKENIZE = "/qwenvl.inference.v1.TokenizeService/Detokenize"


def long_text(letters: int) -> tokenize_pb.DetokenizeRequest:
    return tokenize_pb.DetokenizeRequest(model="echo", token_ids=[66] * letters)


async def ask_without_reading(connection: Connection, count: int, letters: int, key: str) -> None:
    metadata = YEARS | dict(with_key(key))
    request = message(long_text(letters).SerializeToString())
    for _ in range(count):
        stream = await connection.call(DETOKENIZE, metadata=metadata)
        await connection.send(stream, request, end=True)


async def test_answers_that_nobody_reads_have_a_bound_and_others_pass(
    guarded: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def long(*_: Any, **__: Any) -> str:
        return "c" * 8 * MIB

    monkeypatch.setattr(type(guarded.backend.vocabulary), "detokenize", long)
    answers = guarded.front._limits.answers
    tokens = tokenize_grpc.TokenizeServiceStub(guarded.channel)
    async with Connection.open(guarded.front.ports["grpc"], window=0) as connection:
        await ask_without_reading(connection, 20, 2**18, "one")
        await until(lambda: answers.used_bytes > answers.limit_bytes // 4)
        for _ in range(3):
            got = await tokens.Detokenize(long_text(9), metadata=with_key("two"), timeout=20)
            assert len(got.text) == 8 * MIB
        assert answers.limit_bytes // 4 < answers.used_bytes <= answers.limit_bytes // 2
    await until(lambda: answers.used_bytes == 0)


@pytest.mark.parametrize(("sizes", "is_closed"), [([9], False), ([5, 5], True), ([5, 0, 5], True)])
async def test_connections_of_clients_that_read_nothing_are_closed_when_it_is_too_much(
    open_service,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sizes: list[int],
    is_closed: bool,
) -> None:
    """Their answers are in memory until then. Each connection is another key's, and one that reads little stays."""
    path = tmp_path / "keys"
    path.write_text("one\ntwo\n")
    service = await open_service(api_key_file=str(path), send_timeout_s=0.3)
    connections, answers = service.front._connections, service.front._limits.answers
    monkeypatch.setattr(connections, "_max_unread_bytes", 10 * 2**17)
    async with contextlib.AsyncExitStack() as stack:
        port = service.front.ports["grpc"]
        opened = [await stack.enter_async_context(Connection.open(port, window=0)) for _ in sizes]
        for number, (connection, count) in enumerate(zip(opened, sizes, strict=True)):
            key = ("one", "two")[number % 2]
            letters = 2**17 if count else 9
            await ask_without_reading(connection, count or 1, letters, key)
        if is_closed:
            await until(lambda: any(connection.closed for connection in opened))
        remaining = 5 * 2**17 if is_closed else sum(sizes) * 2**17
        await until(lambda: remaining <= connections._unread.total() <= 10 * 2**17)
        await asyncio.sleep(0.6)  # the connections are looked at twice
        assert sum(connection.closed for connection in opened) == is_closed
        assert not any(one.closed for one, count in zip(opened, sizes, strict=True) if not count)
        assert answers.used_bytes >= 2 * remaining, "gRPC has them still"
    await until(lambda: answers.used_bytes == 0)
    await until(lambda: not connections._unread)


async def test_many_large_answers_at_once_reach_a_client_that_reads(guarded: Service) -> None:
    tokens = tokenize_grpc.TokenizeServiceStub(guarded.channel)
    calls = [
        tokens.Detokenize(long_text(2**15), metadata=with_key("one"), timeout=60) for _ in range(64)
    ]
    assert {(await call).text for call in calls} == {"c" * 2**15}
    await until(lambda: guarded.front._limits.answers.used_bytes == 0)


async def test_years_of_a_caller_do_not_replace_the_deadline(open_service) -> None:
    service = await open_service(request_timeout_s=0.3)
    service.engine.hold_at = 1
    got = await refusal(service.create(spec_of("x"), timeout=10**9))
    assert got.info.reason == "DEADLINE_EXCEEDED"


async def test_a_shorter_deadline_of_a_caller_counts(open_service) -> None:
    service = await open_service(request_timeout_s=600)
    service.engine.hold_at = 1
    begin = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.create(spec_of("x"), timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - begin < 60
    await until(lambda: service.backend.in_flight == 0)


async def test_a_watch_that_is_not_read_does_not_stop_the_changes_of_others(open_service) -> None:
    service = await open_service(ready=False)
    async with Connection.open(service.front.ports["grpc"], window=0) as connection:
        name = message(health_pb2.HealthCheckRequest(service="readiness").SerializeToString())
        await connection.send(await connection.call(f"{HEALTH}/Watch"), name, end=True)
        request = health_pb2.HealthCheckRequest(service="readiness")
        watch = health_pb2_grpc.HealthStub(service.channel).Watch(request, timeout=20)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await service.engine.start()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


def own_connection(target: str) -> grpc.aio.Channel:
    """A channel whose connection no other one has."""
    return grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])


async def code_of_watch(
    watches: list[grpc.aio.UnaryStreamCall[Any, Any]], channel: grpc.aio.Channel, name: str = ""
) -> grpc.StatusCode | None:
    """How a new watch is refused; None = it is open, and the last one of `watches`."""
    request = health_pb2.HealthCheckRequest(service=name)
    watch = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=60)
    try:
        await watch.read()
    except grpc.aio.AioRpcError as error:
        return error.code()
    watches.append(watch)
    return None


async def test_unknown_names_are_not_watched(service: Service) -> None:
    assert await code_of_watch([], service.channel, "nobody") is grpc.StatusCode.NOT_FOUND


async def test_a_stranger_with_all_watches_keeps_nobody_from_watching(
    guarded: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients that check the health of a connection do not use it without."""
    monkeypatch.setattr("inference_service.grpc_api.health.MAX_WATCHES", 3)
    watches: list[grpc.aio.UnaryStreamCall[Any, Any]] = []
    async with contextlib.AsyncExitStack() as channels:
        strange, honest, other = [
            await channels.enter_async_context(own_connection(guarded.target())) for _ in range(3)
        ]
        for _ in range(3):
            assert await code_of_watch(watches, strange) is None
        assert await code_of_watch(watches, honest) is None, "takes the stranger's place"
        assert await watches[0].code() is grpc.StatusCode.UNAVAILABLE
        load = admin_grpc.AdminServiceStub(honest).GetLoad
        await load(admin_pb.GetLoadRequest(), metadata=with_key("one"), timeout=20)
        for _ in range(5):
            assert await code_of_watch(watches, other) is None
        open_ones = [watch for watch in watches if not watch.done()]
        assert watches[3] in open_ones, "a connection with calls keeps its watch"
        assert len(open_ones) == 3
        for watch in open_ones:
            watch.cancel()


async def test_a_watch_of_each_client_is_left_alone(
    guarded: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would come back at once, take the place of the next one, and so on."""
    monkeypatch.setattr("inference_service.grpc_api.health.MAX_WATCHES", 2)
    watches: list[grpc.aio.UnaryStreamCall[Any, Any]] = []
    async with contextlib.AsyncExitStack() as channels:
        clients = [
            await channels.enter_async_context(own_connection(guarded.target())) for _ in range(3)
        ]
        for client in clients:
            load = admin_grpc.AdminServiceStub(client).GetLoad
            await load(admin_pb.GetLoadRequest(), metadata=with_key("one"), timeout=20)
        codes = [await code_of_watch(watches, client) for client in clients]
        assert codes == [None, None, grpc.StatusCode.RESOURCE_EXHAUSTED]
        assert not any(watch.done() for watch in watches)
        for watch in watches:
            watch.cancel()


# ---- one caller and another ----


async def test_ids_of_others_are_not_told(guarded: Service) -> None:
    guarded.engine.hold_at = 2
    streams = []
    for key in ("one", "two"):
        streams.append(guarded.stream(spec_of("hello", request_id="same"), metadata=with_key(key)))
        assert (await read_event(streams[-1])).started.request_id == "same"
    got = await refusal(guarded.create(spec_of("x", request_id="same"), metadata=with_key("one")))
    assert got.code is grpc.StatusCode.ALREADY_EXISTS
    await until(lambda: len(guarded.engine.live) == 2)
    ids = admin_pb.AbortRequest(request_ids=["same"])
    await guarded.admin.Abort(ids, metadata=with_key("two"), timeout=20)
    await until(lambda: len(guarded.engine.live) == 1)
    assert [key[0] for key in guarded.engine.live] == ["same"]
    guarded.engine.resume.set()
    for stream in streams:
        stream.cancel()


@pytest.mark.parametrize("per_key", [True, False])
async def test_cached_prompts_are_shared_within_a_key_only(
    open_service, tmp_path: Path, per_key: bool
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one\ntwo\n")
    service = await open_service(api_key_file=str(keys), cache_per_key=per_key)
    for key, salt in (("one", ""), ("two", ""), ("one", ""), ("one", "s"), ("two", "s")):
        await service.create(spec_of("x", cache_salt=salt), metadata=with_key(key))
    salts = [request.cache_salt for request in service.engine.requests]
    assert salts[0] == salts[2]
    assert len(set(salts)) == (4 if per_key else 2)
    assert not any(b"one" in salt for salt in salts)


async def test_counters_of_all_callers_are_for_the_operator(guarded: Service) -> None:
    guarded.engine.pixel_bytes_in_flight = 12
    request, metadata = admin_pb.GetLoadRequest(), with_key("one")
    seen = (await guarded.admin.GetLoad(request, metadata=metadata)).load
    assert (seen.kv_pages_total, seen.pixel_bytes_in_flight) == (1000, 0)
    info = admin_pb.GetServerInfoRequest()
    seen = (await guarded.admin.GetServerInfo(info, metadata=metadata)).load
    assert seen.pixel_bytes_in_flight == 0
    async with channel_to(guarded.target("admin")) as channel:
        admin = admin_grpc.AdminServiceStub(channel)
        assert (await admin.GetLoad(request, metadata=metadata)).load.pixel_bytes_in_flight == 12


async def test_a_caller_over_its_rate_is_told_when_to_come_back(open_service, tmp_path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one\ntwo\n")
    service = await open_service(api_key_file=str(keys), max_requests_per_minute=2)
    for _ in range(2):
        await service.create(spec_of("x"), metadata=with_key("one"))
    got = await refusal(service.create(spec_of("x"), metadata=with_key("one")))
    assert (got.info.reason, got.code) == (
        "RATE_LIMIT_EXCEEDED",
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    )
    assert got.retry_after_s is not None
    assert 0 < got.retry_after_s <= 30
    assert (await service.create(spec_of("x"), metadata=with_key("two"))).choices


async def test_a_silent_engine_is_not_serving(service: Service) -> None:
    service.engine.become(EngineState.SILENT)
    stub = health_pb2_grpc.HealthStub(service.channel)
    request = health_pb2.HealthCheckRequest(service="readiness")
    assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.NOT_SERVING
    got = await refusal(service.create(spec_of("x")))
    assert (got.info.reason, got.code) == ("ENGINE_UNAVAILABLE", grpc.StatusCode.UNAVAILABLE)


async def test_no_more_prompts_than_the_cache_holds_go_to_the_engine(service: Service) -> None:
    """The cache of the stand-in has 16,000 tokens; each of these prompts has more than 1,500."""
    service.engine.hold_at = 1
    calls = [
        asyncio.ensure_future(service.create(spec_of("x" * 1500, request_id=f"r{i}")))
        for i in range(12)
    ]
    await until(lambda: len(service.engine.live) == 10)
    await asyncio.sleep(0.1)
    assert len(service.engine.live) == 10
    service.engine.resume.set()
    assert len(await asyncio.gather(*calls)) == 12


async def test_a_line_that_needs_the_cache_many_times_over_is_full(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference_service.backend.turn._MAX_WAITING_CACHES", 0.01)
    service.engine.hold_at = 1
    calls = [
        asyncio.ensure_future(service.create(spec_of("x" * 1500, request_id=f"r{i}")))
        for i in range(11)
    ]
    await until(lambda: len(service.engine.live) == 10)
    await until(lambda: service.backend._shared.tokens.waiting == 1)
    got = await refusal(service.create(spec_of("x" * 1500)))
    assert (got.info.reason, got.code) == ("QUEUE_FULL", grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert "KV cache of 16000 tokens" in got.message
    service.engine.resume.set()
    await asyncio.gather(*calls)


@pytest.mark.parametrize("kind", ["no image", "an engine's refusal", "a defect"])
async def test_nothing_is_kept_of_a_request_that_failed(
    service: Service, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """gRPC keeps the exception that ended a call, which refers to the frames that held its images."""
    spec = spec_of(message_pb.Part(image=message_pb.Image(data=bytes(4 * MIB))), "?")
    if kind != "no image":
        padded = draw("red", "circle").png + bytes(4 * MIB)
        spec = spec_of(message_pb.Part(image=message_pb.Image(data=padded)), "?")
    if kind == "an engine's refusal":
        service.engine.fails_with = EngineFailure(reason="IMAGE_TOO_LARGE", message="It says.")
    if kind == "a defect":
        monkeypatch.setattr(type(service.model.prompts), "build", lambda *_: 1 / 0)
    request = chat_pb.CreateChatCompletionRequest(spec=spec)
    await refusal(service.chat.CreateChatCompletion(request, timeout=30))
    tracemalloc.start()
    try:
        for _ in range(8):
            await refusal(service.chat.CreateChatCompletion(request, timeout=30))
        await until(lambda: service.backend.in_flight == 0)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 8 * MIB
    finally:
        tracemalloc.stop()


async def test_large_requests_are_converted_off_the_event_loop(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_loop: list[bool] = []
    convert = requests.chat_request

    def noting(*arguments: Any) -> Any:
        on_loop.append(threading.current_thread() is threading.main_thread())
        return convert(*arguments)

    monkeypatch.setattr(chat_service, "chat_request", noting)
    await service.create(spec_of("x"))
    with pytest.raises(grpc.aio.AioRpcError):  # more than the context holds
        await service.create(spec_of("x" * 100_000))
    assert on_loop == [True, False]
