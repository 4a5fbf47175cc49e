"""Keys, request ids and the log line of a call."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
import pytest

from inference_service.backend.base import BackendState
from inference_service.grpc_api import connections
from qwenvl.inference.v1 import admin_service_pb2 as admin_pb
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.observability import REQUEST_ID_ENTRY
from qwenvl.pacing import RefusalPacing
from tests.grpc_api.asking import read_event, read_rest, refusal, spec_of, until
from tests.grpc_api.conftest import Service, channel_to


KEY = (("authorization", "Bearer key-one"),)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("key-one\nkey-two\n")
    return path


@pytest.fixture
async def guarded(open_service, key_file: Path) -> Service:
    return await open_service(api_key_file=str(key_file))


async def drained(stream: grpc.aio.UnaryStreamCall) -> None:
    async for _ in stream:
        pass


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", "Bearer wrong"),),
        (("authorization", "key-one"),),
        (("authorization", ""),),
    ],
)
async def test_every_method_needs_a_key(guarded: Service, metadata) -> None:
    spec = spec_of("x")
    options = {"timeout": 20, "metadata": metadata}
    calls = [
        guarded.create(spec, **options),
        drained(guarded.stream(spec, **options)),
        guarded.chat.CountTokens(chat_pb.CountTokensRequest(spec=spec), **options),
        guarded.models.ListModels(model_pb.ListModelsRequest(), **options),
        guarded.models.GetModel(model_pb.GetModelRequest(name="echo"), **options),
        guarded.admin.Abort(admin_pb.AbortRequest(request_ids=["x"]), **options),
        guarded.admin.GetServerInfo(admin_pb.GetServerInfoRequest(), **options),
        guarded.admin.GetLoad(admin_pb.GetLoadRequest(), **options),
        guarded.admin.Drain(admin_pb.DrainRequest(), **options),
    ]
    for call in calls:
        got = await refusal(call)
        assert (got.info.reason, got.code) == (
            "UNAUTHENTICATED",
            grpc.StatusCode.UNAUTHENTICATED,
        )
    assert not guarded.engine.requests


async def test_reflection_is_guarded_and_health_is_open(guarded: Service) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(guarded.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    # Nothing is sent: a client of grpc.aio that is refused while it sends sees INTERNAL of its own making.
    got = await refusal(stub.ServerReflectionInfo(timeout=20).read())
    assert got.code is grpc.StatusCode.UNAUTHENTICATED
    await drained(stub.ServerReflectionInfo(iter([request]), metadata=KEY))
    health = health_pb2_grpc.HealthStub(guarded.channel)
    assert (await health.Check(health_pb2.HealthCheckRequest())).status == 1


async def test_the_admin_address_is_guarded_too(guarded: Service) -> None:
    async with channel_to(guarded.target("admin")) as channel:
        stub = type(guarded.admin)(channel)
        got = await refusal(stub.Drain(admin_pb.DrainRequest()))
        assert got.code is grpc.StatusCode.UNAUTHENTICATED
    assert guarded.backend.state is not BackendState.DRAINING


def replace_keys(path: Path, text: str) -> None:
    path.write_text(text)
    os.utime(path, ns=(1, 1))


async def test_known_keys_pass_and_the_file_is_read_again(guarded: Service, key_file: Path) -> None:
    assert (await guarded.create(spec_of("x"), metadata=KEY)).choices[0].text == "x"
    replace_keys(key_file, "key-three\n")
    got = await refusal(guarded.create(spec_of("x"), metadata=KEY))
    assert got.code is grpc.StatusCode.UNAUTHENTICATED
    fresh = (("authorization", "bearer key-three"),)
    assert (await guarded.create(spec_of("x"), metadata=fresh)).choices[0].text == "x"


async def test_a_refused_call_has_its_log_line(guarded: Service, caplog) -> None:
    caplog.set_level(logging.INFO)
    # The message, which may have an id as well, is not read.
    wrong = (("authorization", "Bearer a-wrong-key"), (REQUEST_ID_ENTRY, "nobody"))
    await refusal(guarded.create(spec_of("x"), metadata=wrong))

    def lines() -> list[dict[str, str]]:
        return [r.msg for r in caplog.records if r.name == "inference_service.access"]

    await until(lambda: bool(lines()))  # it may follow the answer
    (line,) = lines()
    assert line | {"code": "UNAUTHENTICATED", "request_id": "nobody"} == line
    assert len(line["caller"]) == 12
    assert "a-wrong-key" not in caplog.text


async def test_request_id_comes_from_the_request_or_is_made(service: Service, caplog) -> None:
    """Never from `x-request-id`: a gateway may send one for several requests."""
    metadata = (("x-request-id", "from-metadata"),)
    caplog.set_level(logging.INFO)
    spec = spec_of("x", request_id="from-request")
    assert (await service.create(spec, metadata=metadata)).started.request_id == "from-request"
    started = (await service.create(spec_of("x"), metadata=metadata)).started
    assert started.request_id != "from-metadata"
    lines = [r.msg for r in caplog.records if r.name == "inference_service.access"]
    assert [(line["request_id"], line["client_request_id"]) for line in lines] == [
        ("from-request", "from-metadata"),
        (started.request_id, "from-metadata"),
    ]
    made = {(await service.create(spec_of("x"))).started.request_id for _ in range(3)}
    assert len(made) == 3
    assert all(made_id in caplog.text for made_id in made)


async def test_two_calls_at_once_may_have_one_x_request_id(service: Service) -> None:
    metadata = (("x-request-id", "of-the-gateway"),)
    service.engine.hold_at = 2
    streams = [service.stream(spec_of("hello"), metadata=metadata) for _ in range(2)]
    started = [(await read_event(stream)).started.request_id for stream in streams]
    assert len(set(started)) == 2
    service.engine.resume.set()
    for stream in streams:
        await read_rest(stream)
        assert await stream.code() is grpc.StatusCode.OK


async def test_one_log_line_for_every_call_without_what_was_said(service: Service, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "https://host.invalid/x.png?token=secret-query"
    uri = message_pb.Part(image=message_pb.Image(uri=secret))
    headers = (("authorization", "Bearer secret-key"),)
    await service.create(spec_of("secret-prompt", request_id="r1"), metadata=headers)
    await drained(service.stream(spec_of("secret-prompt", request_id="r2")))
    await refusal(service.create(spec_of("secret-prompt", uri, n=9, request_id="r3")))
    service.engine.hold_at = 0
    call = service.stream(spec_of("secret-prompt", request_id="r4"))
    await call.read()
    call.cancel()
    lines: dict[str, str] = {}
    async with asyncio.timeout(20):
        while "r4" not in lines:
            await asyncio.sleep(0.005)
            records = [r.msg for r in caplog.records if r.name == "inference_service.access"]
            lines = {record["request_id"]: record["code"] for record in records}
    assert lines == {"r1": "OK", "r2": "OK", "r3": "INVALID_ARGUMENT", "r4": "CANCELLED"}
    assert len(records) == 4
    assert "secret" not in caplog.text


@pytest.mark.parametrize("key", ["key-one", "wrong"])
async def test_refusals_that_wait_leave_room_in_a_shared_connection(
    open_service, key_file: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """An adapter has one connection for all callers, and strangers may come through it."""
    answer, waiting = asyncio.Event(), 0

    async def wait(*_: object) -> None:
        nonlocal waiting
        waiting += 1
        await answer.wait()

    monkeypatch.setattr(connections, "MAX_WAITING", 2)
    monkeypatch.setattr(RefusalPacing, "wait", wait)
    service = await open_service(api_key_file=str(key_file), max_queue=1)
    service.engine.hold_at = 1
    held = asyncio.ensure_future(service.create(spec_of("x"), metadata=KEY))
    await until(lambda: bool(service.engine.live))
    other = {"metadata": (("authorization", "Bearer key-two"),), "timeout": 20}
    await service.models.ListModels(model_pb.ListModelsRequest(), **other)
    metadata = (("authorization", f"Bearer {key}"),)
    refused = [
        asyncio.ensure_future(refusal(service.create(spec_of("y"), metadata=metadata)))
        for _ in range(5)
    ]
    await until(lambda: sum(task.done() for task in refused) == 3)
    assert waiting == 2
    answer.set()
    reasons = {got.info.reason for got in await asyncio.gather(*refused)}
    assert reasons == {"QUEUE_FULL" if key == "key-one" else "UNAUTHENTICATED"}
    service.engine.resume.set()
    assert (await held).choices[0].text == "x"
