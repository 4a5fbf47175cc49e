"""How requests end early: callers who leave, deadlines, Abort, and readers that are slow."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import grpc.aio
import pytest

from inference_service.errors import DeadlineError
from inference_service.grpc_api.chat_service import ChatServicer
from inference_service.media.decoder import ImageDecoder
from inference_service.settings import ServiceSettings
from qwenvl.inference.v1 import admin_service_pb2 as admin_pb
from qwenvl.inference.v1 import admin_service_pb2_grpc as admin_grpc
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from qwenvl.observability import CallContext, enter_call
from tests.engine_client.engine_front import is_running
from tests.grpc_api.asking import image_part, read_event, read_rest, refusal, spec_of, until
from tests.grpc_api.conftest import Service, channel_to
from tests.media.decoding import SLOW, busy_pid
from tests.support.images import draw


def is_idle(service: Service) -> bool:
    return not service.engine.live and service.backend.in_flight == 0


@pytest.mark.parametrize("unary", [False, True])
async def test_caller_who_leaves_frees_the_engine(service: Service, unary: bool) -> None:
    service.engine.hold_at = 2
    spec = spec_of("hello", n=2, request_id="left")
    if unary:
        call = service.chat.CreateChatCompletion(chat_pb.CreateChatCompletionRequest(spec=spec))
    else:
        call = service.stream(spec)
        assert (await read_event(call)).HasField("started")
    await until(lambda: len(service.engine.live) == 2)
    call.cancel()
    await until(lambda: is_idle(service))
    assert sorted(service.engine.aborted) == [("left", 0), ("left", 1)]


async def test_caller_who_leaves_while_images_are_decoded(service: Service, monkeypatch) -> None:
    begun, never = asyncio.Event(), asyncio.Event()

    async def stuck(*_: object, **__: Any) -> None:
        begun.set()
        await never.wait()

    monkeypatch.setattr(ImageDecoder, "decode", stuck)
    call = service.stream(spec_of(image_part(draw("red", "star").png), "?"))
    reading = asyncio.ensure_future(call.read())
    await begun.wait()
    call.cancel()
    await until(lambda: is_idle(service))
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not service.engine.requests


async def test_caller_who_leaves_ends_the_process_that_decodes(service: Service) -> None:
    call = service.stream(spec_of(image_part(SLOW), "?"))
    reading = asyncio.ensure_future(call.read())
    pool = service.backend._media._decoder._pool
    pid = await busy_pid(pool)
    call.cancel()
    await until(lambda: not is_running(pid))
    await until(lambda: is_idle(service))
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await service.create(spec_of(image_part(draw("red", "star").png), "?"))


async def test_deadline_of_the_caller(service: Service) -> None:
    service.engine.hold_at = 2
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.create(spec_of("hello"), timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: is_idle(service))
    assert len(service.engine.aborted) == len(service.engine.requests)


async def test_deadline_of_the_service(open_service) -> None:
    service = await open_service(request_timeout_s=0.3)
    service.engine.hold_at = 2
    got = await refusal(service.create(spec_of("hello"), timeout=None))
    assert (got.info.reason, got.code) == ("DEADLINE_EXCEEDED", grpc.StatusCode.DEADLINE_EXCEEDED)
    await until(lambda: is_idle(service))


async def test_deadline_passes_while_the_reader_is_slow(open_service) -> None:
    timeout_s = 2.0  # in which the first event must have come
    service = await open_service(request_timeout_s=timeout_s)
    service.engine.hold_at = 2
    servicer = ChatServicer(service.backend, ServiceSettings(request_timeout_s=timeout_s))
    enter_call(CallContext(request_id="slow", caller="me", deadline=time.monotonic() + timeout_s))
    request = chat_pb.StreamChatCompletionRequest(spec=spec_of("hello"))
    context: Any = None  # the servicer does not read it
    stream = servicer.StreamChatCompletion(request, context)
    await anext(stream)
    await asyncio.sleep(
        timeout_s + 0.1
    )  # as gRPC's write of a reader that does not read; it is not cancelled
    with pytest.raises(DeadlineError):
        async for _ in stream:
            pass
    await until(lambda: is_idle(service))


async def test_client_without_deadline_that_does_not_read_is_ended(open_service) -> None:
    service = await open_service(request_timeout_s=3.0)
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 2**12)]  # a fixed window
    async with grpc.aio.insecure_channel(service.target(), options=options) as channel:
        spec = spec_of("x" * 500, n=4, logprobs={"top_logprobs": 20})  # much more than the window
        request = chat_pb.StreamChatCompletionRequest(spec=spec)
        stream = chat_grpc.ChatServiceStub(channel).StreamChatCompletion(request)
        await until(lambda: len(service.engine.live) == 4)
        await until(lambda: is_idle(service))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_rest(stream)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_abort_request(service: Service) -> None:
    service.engine.hold_at = 3
    stream = service.stream(spec_of("hello", n=2, request_id="mine"))
    await stream.read()
    await until(lambda: len(service.engine.live) == 2)
    request = admin_pb.AbortRequest(request_ids=["mine", "nobody"])
    response = await service.admin.Abort(request, timeout=20)
    assert list(response.aborted_request_ids) == ["mine"]
    assert list(response.unknown_request_ids) == ["nobody"]
    events = await read_rest(stream)
    reasons = [e.finished.reason for e in events if e.HasField("finished")]
    assert reasons == [usage_pb.FINISH_REASON_ABORTED] * 2
    assert events[-1].HasField("usage")
    assert await stream.code() is grpc.StatusCode.OK
    assert is_idle(service)


async def test_the_deprecated_name_of_abort_still_works(service: Service) -> None:
    service.engine.hold_at = 3
    stream = service.stream(spec_of("hello", request_id="mine"))
    await stream.read()
    request = admin_pb.AbortRequestRequest(request_ids=["mine", "nobody"])
    response = await service.admin.AbortRequest(request, timeout=20)
    assert (list(response.aborted), list(response.unknown)) == (["mine"], ["nobody"])
    await until(lambda: is_idle(service))


async def test_a_caller_cannot_abort_the_requests_of_others(open_service, tmp_path) -> None:
    """But on the admin address."""
    keys = tmp_path / "keys"
    keys.write_text("one\ntwo\n")
    service = await open_service(api_key_file=str(keys))
    one, two = ((("authorization", f"Bearer {key}"),) for key in ("one", "two"))
    service.engine.hold_at = 3
    streams = [
        service.stream(spec_of("hello", request_id=name), metadata=one)
        for name in ("first", "second")
    ]
    for stream in streams:
        await stream.read()
    await until(lambda: len(service.engine.live) == 2)
    ids = admin_pb.AbortRequest(request_ids=["first"])
    refused = await service.admin.Abort(ids, metadata=two, timeout=20)
    assert (list(refused.aborted_request_ids), list(refused.unknown_request_ids)) == ([], ["first"])
    assert len(service.engine.live) == 2
    same = (("authorization", "bearer  one"),)  # the same key in another notation
    response = await service.admin.Abort(ids, metadata=same, timeout=20)
    assert list(response.aborted_request_ids) == ["first"]
    async with channel_to(service.target("admin")) as channel:
        ids = admin_pb.AbortRequest(request_ids=["second"])
        operator = admin_grpc.AdminServiceStub(channel)
        response = await operator.Abort(ids, metadata=two, timeout=20)
        assert list(response.aborted_request_ids) == ["second"]
    await until(lambda: is_idle(service))


async def test_abort_before_the_engine_knows(service: Service, monkeypatch) -> None:
    build = type(service.model.prompts).build
    loop = asyncio.get_running_loop()

    def abort_first(*arguments: Any) -> object:
        future = asyncio.run_coroutine_threadsafe(service.backend.abort("early"), loop)
        assert future.result(20)
        return build(*arguments)

    monkeypatch.setattr(type(service.model.prompts), "build", abort_first)
    response = await service.create(spec_of("hello", n=2, request_id="early"))
    reasons = [choice.finish_reason for choice in response.choices]
    assert reasons == [usage_pb.FINISH_REASON_ABORTED] * 2
    assert not service.engine.requests


@pytest.mark.parametrize("counting", [False, True])
async def test_abort_ends_the_preparation_of_images(
    service: Service, monkeypatch: pytest.MonkeyPatch, counting: bool
) -> None:
    begun, never = asyncio.Event(), asyncio.Event()

    async def stuck(*_: object, **__: Any) -> None:
        begun.set()
        await never.wait()

    monkeypatch.setattr(ImageDecoder, "decode", stuck)
    spec = spec_of(image_part(draw("red", "star").png), "?", request_id="mine")
    if counting:
        count = chat_pb.CountTokensRequest(spec=spec)
        call = asyncio.ensure_future(refusal(service.chat.CountTokens(count, timeout=20)))
    else:
        call = asyncio.ensure_future(refusal(service.create(spec)))
    await begun.wait()
    for _ in range(2):
        assert await service.backend.abort("mine")
    assert (await call).info.reason == "ABORTED"
    assert is_idle(service)
    assert not service.engine.requests


async def test_abort_of_a_count_ends_it_with_an_error(service: Service, monkeypatch) -> None:
    build = type(service.model.prompts).build
    loop = asyncio.get_running_loop()

    def abort_first(*arguments: Any) -> object:
        future = asyncio.run_coroutine_threadsafe(service.backend.abort("early"), loop)
        assert future.result(20)
        return build(*arguments)

    monkeypatch.setattr(type(service.model.prompts), "build", abort_first)
    count = chat_pb.CountTokensRequest(spec=spec_of("hello", request_id="early"))
    got = await refusal(service.chat.CountTokens(count, timeout=20))
    assert (got.info.reason, got.code) == ("ABORTED", grpc.StatusCode.CANCELLED)


async def test_slow_reader_gets_everything(service: Service) -> None:
    question = "0123456789" * 40
    stream = service.stream(spec_of(question))
    text = ""
    async for event in stream:
        text += event.delta.text
        await asyncio.sleep(0.0005)
    assert text == question


async def test_reader_that_never_reads_is_cut_by_leaving(service: Service) -> None:
    calls = [service.stream(spec_of("x" * 1500, logprobs={"top_logprobs": 20})) for _ in range(3)]
    await until(lambda: len(service.engine.requests) == 3)
    other = await service.create(spec_of("not delayed"))
    assert other.choices[0].text == "not delayed"
    for call in calls:
        call.cancel()
    await until(lambda: is_idle(service))
