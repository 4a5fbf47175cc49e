"""The load report at the end of every answer, read with the published message and by gRPC's own balancer."""

from __future__ import annotations

import base64
from functools import partial
import json
from pathlib import Path
import socket
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message
import grpc
import grpc.aio
from grpc_tools import protoc
from h2.connection import H2Connection
from h2.events import StreamEnded
import pytest

from inference_service.backend.base import BackendInfo, Load
from inference_service.backend.local import LocalBackend
from inference_service.grpc_api.load_report import LOAD_KEY, Rate, report
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from tests.chaos.http2 import message as http2_message
from tests.grpc_api.asking import spec_of
from tests.grpc_api.conftest import OpenService, Service
from tests.qwenvl.both import in_thread


PACKAGE = "qwenvl.inference.v1"
PUBLISHED = Path(__file__).parent / "orca"


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The class of the published message, which knows nothing of how ours is written."""
    out = tmp_path_factory.mktemp("orca") / "set"
    name = "xds/data/orca/v3/orca_load_report.proto"
    assert protoc.main(["", f"-I{PUBLISHED}", f"--descriptor_set_out={out}", name]) == 0
    [file] = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    kind = pool.FindMessageTypeByName("xds.data.orca.v3.OrcaLoadReport")
    return message_factory.GetMessageClass(kind)


def end_of(target: str, method: str, request: Message, **headers: str) -> dict[str, Any]:
    """The headers and trailers of a call, as they are on the wire: gRPC hides the report from its callers."""
    host, _, port = target.rpartition(":")
    http2, found, ended = H2Connection(), dict[str, Any](), False
    with socket.create_connection((host, int(port)), timeout=20) as wire:
        http2.initiate_connection()
        fields = {":method": "POST", ":scheme": "http", ":path": f"/{PACKAGE}.{method}"}
        fields |= {":authority": host, "te": "trailers", "content-type": "application/grpc"}
        http2.send_headers(1, list((fields | headers).items()))
        http2.send_data(1, http2_message(request.SerializeToString()), end_stream=True)
        while not ended:
            wire.sendall(http2.data_to_send())
            for event in http2.receive_data(wire.recv(2**16)):
                found |= dict(getattr(event, "headers", None) or {})
                ended |= isinstance(event, StreamEnded)
    return {_text(name): _text(value) for name, value in found.items()}


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


async def report_of(service: Service, method: str, request: Message, published: Any) -> Any:
    """The report of a call; None = it has none."""
    end = await in_thread(end_of, service.target(), method, request)
    assert end["grpc-status"]
    if LOAD_KEY not in end:
        return None
    return published.FromString(base64.b64decode(end[LOAD_KEY] + "=="))


def test_every_figure(published: Any) -> None:
    load = Load(running=3, waiting=5, kv_pages_total=40, kv_pages_used=10)
    data = report(load, BackendInfo(max_num_seqs=4), 2.5, 0.5)
    read = published.FromString(data)
    assert (read.rps_fractional, read.eps, read.application_utilization) == (2.5, 0.5, 2.0)
    assert dict(read.utilization) == {"batch": 0.75, "kv_cache": 0.25}
    assert dict(read.named_metrics) == {
        "running_requests": 3,
        "waiting_requests": 5,
        "kv_pages_used": 10,
        "kv_pages_total": 40,
    }
    read.DiscardUnknownFields()
    assert read.ByteSize() == len(data)


def test_the_cache_counts_where_it_is_fuller(published: Any) -> None:
    load = Load(running=1, kv_pages_total=10, kv_pages_used=9)
    read = published.FromString(report(load, BackendInfo(max_num_seqs=4), 1, 0))
    assert read.application_utilization == 0.9


def test_nothing_is_known_before_the_engine_has_started(published: Any) -> None:
    read = published.FromString(report(Load(), BackendInfo(), 0, 0))
    assert read.application_utilization == 0


def test_a_rate_forgets() -> None:
    now = [0.0]
    rate = Rate(lambda: now[0])
    for _ in range(1000):
        now[0] += 0.1
        current = rate.count()
    assert current == pytest.approx(10, rel=0.05)
    now[0] += 600
    assert rate.count(0) < 1e-6


@pytest.mark.parametrize("kind", ["Create", "Stream"])
async def test_every_answer_has_a_report(service: Service, published: Any, kind: str) -> None:
    request = getattr(chat_pb, f"{kind}ChatCompletionRequest")(spec=spec_of("hello"))
    read = await report_of(service, f"ChatService/{kind}ChatCompletion", request, published)
    assert (read.rps_fractional > 0, read.eps) == (True, 0)


async def test_mistakes_of_callers_are_no_failures(service: Service, published: Any) -> None:
    wrong = spec_of("hello", sampling={"temperature": 9})
    request = chat_pb.CreateChatCompletionRequest(spec=wrong)
    read = await report_of(service, "ChatService/CreateChatCompletion", request, published)
    assert (read.rps_fractional > 0, read.eps) == (True, 0)


async def test_a_service_that_cannot_answer_reports_failures(
    open_service: OpenService, published: Any
) -> None:
    service = await open_service(ready=False)
    request = chat_pb.CreateChatCompletionRequest(spec=spec_of("x"))
    read = await report_of(service, "ChatService/CreateChatCompletion", request, published)
    assert read.eps == read.rps_fractional > 0


async def test_other_calls_report_none(service: Service, published: Any) -> None:
    request = model_pb.GetModelRequest()
    assert await report_of(service, "ModelService/GetModel", request, published) is None


async def test_the_balancer_of_grpc_prefers_the_replica_with_less_load(
    open_service: OpenService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC itself reads the reports."""
    replicas = [await open_service() for _ in range(2)]
    for service, running in zip(replicas, (1, 8), strict=True):
        load = Load(running=running, kv_pages_total=10)
        monkeypatch.setattr(service.backend, "load", lambda load=load: load)
    limit = BackendInfo(max_num_seqs=8)
    monkeypatch.setattr(LocalBackend, "info", property(lambda _: limit))
    policy = {"blackoutPeriod": "0s", "weightUpdatePeriod": "0.1s"}
    config = {"loadBalancingConfig": [{"weighted_round_robin": policy}]}
    options = [("grpc.service_config", json.dumps(config))]
    targets = ",".join(service.target() for service in replicas)
    request = chat_pb.CreateChatCompletionRequest(spec=spec_of("x"))
    async with grpc.aio.insecure_channel(f"ipv4:{targets}", options=options) as channel:
        create = chat_grpc.ChatServiceStub(channel).CreateChatCompletion
        for _ in range(40):  # the first calls are balanced before the reports are known
            before = [len(service.engine.requests) for service in replicas]
            for _ in range(40):
                await create(request, wait_for_ready=True, timeout=20)
            idle, busy = (
                len(service.engine.requests) - count
                for service, count in zip(replicas, before, strict=True)
            )
            if idle > 2 * busy > 0:
                break
    assert idle > 2 * busy > 0


async def test_strangers_learn_nothing_of_the_load(
    open_service: OpenService, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("one\n")
    service = await open_service(api_key_file=str(tmp_path / "keys"))
    request = chat_pb.CreateChatCompletionRequest(spec=spec_of("x"))
    ask = partial(end_of, service.target(), "ChatService/CreateChatCompletion", request)
    refused, answered = (
        await in_thread(ask),
        await in_thread(partial(ask, authorization="Bearer one")),
    )
    assert (refused["grpc-status"], answered["grpc-status"]) == ("16", "0")
    assert LOAD_KEY not in refused
    assert LOAD_KEY in answered
