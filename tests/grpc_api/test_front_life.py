"""Start, health and end of the service."""

from __future__ import annotations

import asyncio
from dataclasses import replace
import os
from pathlib import Path
import re
import signal
import socket
import subprocess
import sys
from typing import Any

from google.protobuf.duration_pb2 import Duration
import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
import pytest

from inference_service.backend.base import BackendState
from inference_service.backend.local import LocalBackend
from inference_service.backend.served_model import ServedModel
from inference_service.engine_client.interface import EngineState
from inference_service.grpc_api import server
from inference_service.grpc_api.admin_service import AdminServicer
from inference_service.grpc_api.server import Front, serve
from inference_service.settings import ServiceSettings
from qwenvl import Client
from qwenvl.inference.v1 import admin_service_pb2 as admin_pb
from qwenvl.inference.v1 import admin_service_pb2_grpc as admin_grpc
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import model_service_pb2_grpc as model_grpc
from qwenvl.pacing import RefusalPacing
from qwenvl.stop_signals import ECHO_S, StopSignals
from tests.chaos.http2 import Connection
from tests.grpc_api.asking import read_rest, refusal, spec_of, until
from tests.grpc_api.conftest import Service, channel_to
from tests.grpc_api.echo_engine import EchoEngine
from tests.support.ports import free_port
from tests.support.scrape import scrape


ROOT = Path(__file__).parents[2]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = {
    f"qwenvl.inference.v1.{name}Service"
    for name in ("Chat", "Completion", "Decision", "Model", "Tokenize", "Admin")
}


async def health_of(service: Service) -> dict[str, int]:
    listed = await health_pb2_grpc.HealthStub(service.channel).List(
        health_pb2.HealthListRequest(), timeout=20
    )
    return {name: response.status for name, response in listed.statuses.items()}


async def checked(service: Service, name: str) -> int:
    request = health_pb2.HealthCheckRequest(service=name)
    return (await health_pb2_grpc.HealthStub(service.channel).Check(request, timeout=20)).status


async def is_health(service: Service, *, ready: bool, alive: bool) -> bool:
    statuses = await health_of(service)
    liveness = statuses.pop("liveness")
    assert set(statuses) == {"", "readiness"} | SERVICES
    for name, status in statuses.items():
        assert await checked(service, name) == status
    wanted = SERVING if ready else NOT_SERVING
    return set(statuses.values()) == {wanted} and (liveness == SERVING) == alive


async def test_health_follows_the_engine(open_service) -> None:
    service = await open_service(ready=False)
    assert await is_health(service, ready=False, alive=True)
    stages = [
        (EngineState.READY, True, True),
        (EngineState.RESTARTING, False, True),
        (EngineState.READY, True, True),
        (EngineState.FAILED, False, False),
    ]
    for state, ready, alive in stages:
        service.engine.become(state)
        async with asyncio.timeout(20):
            while not await is_health(service, ready=ready, alive=alive):  # noqa: ASYNC110 - a poll is meant
                await asyncio.sleep(0.005)


async def test_health_does_not_depend_on_the_queue(open_service) -> None:
    service = await open_service(max_queue=1)
    service.engine.hold_at = 0
    held = asyncio.ensure_future(service.create(spec_of("x")))
    await until(lambda: bool(service.engine.live))
    assert await is_health(service, ready=True, alive=True)
    service.engine.resume.set()
    await held


async def test_watch_reports_every_change(open_service) -> None:
    service = await open_service(ready=False)
    request = health_pb2.HealthCheckRequest(service="readiness")
    watch = health_pb2_grpc.HealthStub(service.channel).Watch(request, timeout=20)
    assert (await watch.read()).status == NOT_SERVING
    await service.engine.start()
    assert (await watch.read()).status == SERVING
    service.engine.become(EngineState.RESTARTING)
    assert (await watch.read()).status == NOT_SERVING
    watch.cancel()


async def test_unknown_service_has_no_health(service: Service) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await checked(service, "nobody")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_address_serves_nothing_else(open_service) -> None:
    service = await open_service(health_address="127.0.0.1:0")
    async with channel_to(service.target("health")) as channel:
        response = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=20
        )
        assert response.status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await admin_grpc.AdminServiceStub(channel).GetLoad(admin_pb.GetLoadRequest())
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_reflection(service: Service) -> None:
    def services() -> set[str]:
        with grpc.insecure_channel(service.target()) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            database.FindFileContainingSymbol("qwenvl.inference.v1.ChatCompletionSpec")
            return set(database.get_services())

    assert await asyncio.to_thread(services) >= SERVICES | {"grpc.health.v1.Health"}


@pytest.mark.parametrize("address", ["[::]:0", ":0", "0.0.0.0:0"])
async def test_every_address_of_the_machine_means_ipv4_too(open_service, address: str) -> None:
    service = await open_service(grpc_address=address)
    async with channel_to(f"127.0.0.1:{service.front.ports['grpc']}") as channel:
        models = model_grpc.ModelServiceStub(channel)
        assert (await models.ListModels(model_pb.ListModelsRequest(), timeout=20)).models


async def test_second_server_on_a_port_fails(service: Service, model) -> None:
    settings = ServiceSettings(grpc_address=service.target(), admin_address=None)
    with pytest.raises(OSError, match=r"--grpc-address=127.*: the port is in use"):
        await Front(settings, LocalBackend(settings, model, EchoEngine(model.tokenizer))).start()


@pytest.mark.parametrize("name", ["grpc", "admin", "health", "metrics"])
def test_a_process_on_a_port_in_use_ends_with_a_line(model_dir: Path, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = {
            "QWENVL_MODEL": str(model_dir),
            "QWENVL_GRPC_ADDRESS": "127.0.0.1:0",
            "QWENVL_ADMIN_ADDRESS": "127.0.0.1:0",
            f"QWENVL_{name.upper()}_ADDRESS": address,
        }
        result = subprocess.run(
            [sys.executable, "-m", "inference_service"],
            cwd=ROOT,
            env=os.environ | settings,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert result.returncode == 1
    *logs, line = result.stderr.splitlines()
    variable = f"QWENVL_{name.upper()}_ADDRESS"
    assert (
        line == f"--{name}-address={address} ({variable}): the port is in use; choose another one"
    )
    assert all("listens on" in log for log in logs)


async def test_server_info_and_load(open_service) -> None:
    service = await open_service(ready=False, max_num_seqs=5)
    info = await service.admin.GetServerInfo(admin_pb.GetServerInfoRequest(), timeout=20)
    assert info.engine_state == admin_pb.ENGINE_STATE_LOADING
    await service.engine.start()
    info = await service.admin.GetServerInfo(admin_pb.GetServerInfoRequest(), timeout=20)
    assert info.engine_state == admin_pb.ENGINE_STATE_READY
    assert (info.model, info.device, info.dtype) == ("echo", "cpu", "float32")
    assert (info.max_message_bytes, info.max_num_seqs, info.max_model_len) == (2**25, 5, 2048)
    assert (info.engine_pid, info.slow_path) == (4321, "")
    service.engine.ready = replace(service.engine.ready, slow_path="layers on two devices")
    info = await service.admin.GetServerInfo(admin_pb.GetServerInfoRequest(), timeout=20)
    assert info.slow_path == "layers on two devices"
    service.engine.hold_at = 1
    held = asyncio.ensure_future(service.create(spec_of("x", n=2)))
    await until(lambda: len(service.engine.live) == 2)
    load = (await service.admin.GetLoad(admin_pb.GetLoadRequest(), timeout=20)).load
    assert (load.running_requests, load.kv_pages_total) == (2, 1000)
    service.engine.resume.set()
    await held


async def test_models(service: Service) -> None:
    listed = await service.models.ListModels(model_pb.ListModelsRequest(), timeout=20)
    assert [m.name for m in listed.models] == ["echo", "echo-too"]
    assert {m.canonical_name for m in listed.models} == {"echo"}
    request = model_pb.GetModelRequest(name="echo-too")
    got = (await service.models.GetModel(request, timeout=20)).model
    assert got == listed.models[1]
    assert (got.family, got.max_context_tokens) == ("qwen3_vl", 2048)
    assert got.coordinate_convention == model_pb.COORDINATE_CONVENTION_PER_MILLE
    assert got.image_limits.pixel_step == 32
    assert list(got.url_schemes) == ["http", "https"]
    # What the engine has loaded: a fine-tuned head makes a model larger than its configuration says.
    ready = service.engine.ready
    assert ready is not None
    assert tuple((part.name, part.parameter_count) for part in got.parts) == ready.parts
    assert got.parameter_count == sum(part.parameter_count for part in got.parts)
    assert got.memory.weight_bytes == ready.weight_bytes == 4 * got.parameter_count
    assert got.memory.kv_cache_bytes == 1000 * 16 * got.memory.kv_bytes_per_token
    answer = await service.create(spec_of("x", model="echo-too"))
    assert answer.started.model == "echo"


async def test_drain_is_for_the_admin_address(service: Service) -> None:
    got = await refusal(service.admin.Drain(admin_pb.DrainRequest()))
    assert (got.info.reason, got.code) == ("PERMISSION_DENIED", grpc.StatusCode.PERMISSION_DENIED)
    assert service.backend.state is not BackendState.DRAINING


async def test_drain_lets_running_requests_finish(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wait(*_: object) -> None:
        pytest.fail("another replica answers at once")

    monkeypatch.setattr(RefusalPacing, "wait", wait)
    service.engine.hold_at = 2
    held = asyncio.ensure_future(service.create(spec_of("to the end")))
    await until(lambda: bool(service.engine.live))
    async with channel_to(service.target("admin")) as channel:
        admin = admin_grpc.AdminServiceStub(channel)
        assert (await admin.Drain(admin_pb.DrainRequest(), timeout=20)).requests_in_flight == 1
        await until(lambda: service.backend.state is BackendState.DRAINING)
        info = await admin.GetServerInfo(admin_pb.GetServerInfoRequest(), timeout=20)
        assert info.engine_state == admin_pb.ENGINE_STATE_DRAINING
        assert await is_health(service, ready=False, alive=True)
        got = await refusal(service.create(spec_of("too late")))
        assert (got.info.reason, got.code) == ("DRAINING", grpc.StatusCode.UNAVAILABLE)
        assert got.retry_after_s
        service.engine.resume.set()
        assert (await held).choices[0].text == "to the end"
        async with asyncio.timeout(20):
            await service.front.wait()
    assert service.engine.state is EngineState.CLOSED


async def test_drain_cancels_what_exceeds_its_budget(service: Service) -> None:
    service.engine.hold_at = 2
    held = asyncio.ensure_future(service.create(spec_of("too long")))
    await until(lambda: bool(service.engine.live))
    async with channel_to(service.target("admin")) as channel:
        budget = Duration(nanos=50_000_000)
        await admin_grpc.AdminServiceStub(channel).Drain(admin_pb.DrainRequest(budget=budget))
        async with asyncio.timeout(20):
            await service.front.wait()
    with pytest.raises(grpc.aio.AioRpcError):
        await held
    assert not service.engine.live


@pytest.mark.parametrize(
    ("budget", "seconds"),
    [
        (None, 7.0),
        (Duration(), 0.0),
        (Duration(seconds=1, nanos=500_000_000), 1.5),
        (Duration(seconds=-2, nanos=-1), 0.0),
    ],
)
async def test_budget_of_a_drain(service: Service, budget: Duration | None, seconds: float) -> None:
    budgets: asyncio.Queue[float] = asyncio.Queue()
    settings = ServiceSettings(drain_timeout_s=7.0)
    servicer = AdminServicer(service.backend, settings, budgets.put)
    context: Any = None  # the servicer does not read it
    await servicer.Drain(admin_pb.DrainRequest(budget=budget), context)
    async with asyncio.timeout(20):
        assert await budgets.get() == seconds


async def test_an_engine_that_failed_for_good_ends_the_service(model: ServedModel) -> None:
    """What watches the process (systemd, Kubernetes, a shell) starts it anew or tells somebody."""
    engine = EchoEngine(model.tokenizer)
    settings = ServiceSettings(grpc_address="127.0.0.1:0", admin_address=None)
    running = asyncio.ensure_future(serve(settings, LocalBackend(settings, model, engine)))
    await until(lambda: engine.state is EngineState.READY)
    engine.become(EngineState.RESTARTING)
    await asyncio.sleep(0.05)
    assert not running.done()
    engine.become(EngineState.FAILED)
    async with asyncio.timeout(20):
        assert await running == 1


async def test_a_second_signal_ends_requests_with_an_error_at_once(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(server, "StopSignals", lambda: StopSignals(clock=lambda: now))
    port = free_port()
    settings = ServiceSettings(grpc_address=f"127.0.0.1:{port}", admin_address=None)
    engine = EchoEngine(model.tokenizer)
    backend = LocalBackend(settings, model, engine)
    running = asyncio.ensure_future(serve(settings, backend))
    await until(lambda: engine.state is EngineState.READY)
    engine.hold_at = 2
    async with channel_to(f"127.0.0.1:{port}") as channel:
        stream = chat_grpc.ChatServiceStub(channel).StreamChatCompletion(
            chat_pb.StreamChatCompletionRequest(spec=spec_of("hello")), timeout=20
        )
        await until(lambda: bool(engine.live))
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: backend.state is BackendState.DRAINING)
        os.kill(os.getpid(), signal.SIGTERM)  # an echo, as from a parent that passes it on
        await asyncio.sleep(0.1)
        assert not running.done()
        now = ECHO_S
        os.kill(os.getpid(), signal.SIGTERM)
        got = await refusal(read_rest(stream))
        assert (got.info.reason, got.code) == ("DRAINING", grpc.StatusCode.UNAVAILABLE)
        async with asyncio.timeout(20):
            assert await running == 0


async def test_a_connection_whose_peer_answers_no_ping_is_closed(
    open_service, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms")
    options = dict(server._OPTIONS)
    assert [options[name] for name in names] == [60_000, 20_000, 20_000]
    monkeypatch.setattr(server, "_OPTIONS", tuple((options | dict.fromkeys(names, 200)).items()))
    service = await open_service()
    async with Connection.open(service.front.ports["grpc"], answers_pings=False) as connection:
        await connection.call("/grpc.health.v1.Health/Watch")
        await until(lambda: connection.closed)


async def test_a_connection_ends_at_its_age(open_service) -> None:
    service = await open_service(max_connection_age_s=0.2)
    async with Connection.open(service.front.ports["grpc"]) as connection:
        await until(lambda: connection.going_away)
    assert (await service.create(spec_of("again"))).choices[0].text == "again"


async def test_a_stream_outlives_the_age_of_its_connection(open_service) -> None:
    service = await open_service(max_connection_age_s=0.2)
    service.engine.hold_at = 2
    stream = service.stream(spec_of("longer"))
    await until(lambda: bool(service.engine.live))
    await asyncio.sleep(1)
    service.engine.resume.set()
    assert await read_rest(stream)  # an error if it is cut
    assert await stream.code() is grpc.StatusCode.OK


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_probes_reach_it_by_both_families(open_service, host: str) -> None:
    if host == "[::1]" and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 on this machine")
    service = await open_service(grpc_address="[::]:0", metrics_address="[::]:0")
    async with grpc.aio.insecure_channel(f"{host}:{service.front.ports['grpc']}") as channel:
        for name in ("readiness", "liveness"):
            request = health_pb2.HealthCheckRequest(service=name)
            answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=20)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
    metrics = await asyncio.to_thread(scrape, f"{host}:{service.front.ports['metrics']}")
    assert metrics.value("qwenvl_ready") == 1


# ---- the process ----


def test_front_loads_neither_torch_nor_transformers_nor_pillow() -> None:
    code = (
        "import sys, inference_service.front, inference_service.serving\n"
        "heavy = {'torch', 'transformers', 'triton', 'modelscope', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_sigterm_lets_a_stream_finish_and_exits_with_0(model_dir: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.grpc_api.echo_front", str(model_dir)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    with program:
        assert program.stderr
        port = next(m[1] for line in program.stderr if (m := re.match(r"port (\d+)", line)))
        with Client(f"127.0.0.1:{port}") as client:
            question = "x" * 100
            pieces = client.stream(question, temperature=0)
            text = next(pieces)
            program.send_signal(signal.SIGTERM)
            text += "".join(pieces)
        assert text == question
        rest = program.stderr.read()
        assert program.wait(30) == 0, rest
        assert "torch loaded" not in rest
        assert question not in rest
