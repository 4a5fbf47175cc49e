"""The product as `qwenvl serve` starts it, and a well-behaved client of both APIs beside attacks on either."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
import contextlib
from dataclasses import dataclass, field
import os
from pathlib import Path
import sys
import time
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
import httpx

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from tests.chaos.service import MIB, MODEL, ROOT, START_S, rss_bytes
from tests.grpc_api.asking import image_part, spec_of
from tests.support.images import draw
from tests.support.ports import free_ports


PROBE = Path(__file__).parent / "probe"
IMAGE = draw("red", "circle").png
IMAGE_URL = "data:image/png;base64," + base64.b64encode(IMAGE).decode()
MAX_RSS = {"rest_adapter": 1536 * MIB, "inference_service": 1024 * MIB}
"""Bounds in bytes: the adapter's budget for bodies is 256 MiB, of which JSON and protobuf need copies."""


@dataclass
class Product:
    """The running product.

    Attributes:
        http: Port of the REST API.
        grpc: Port of the gRPC API.
        metrics: Ports of the metrics of each module.
        pids: The process of each module.
        process: The command.
    """

    http: int
    grpc: int
    process: asyncio.subprocess.Process
    log: Path
    metrics: dict[str, int] = field(default_factory=dict)
    pids: dict[str, int] = field(default_factory=dict)

    def stalls(self) -> dict[str, float]:
        """The longest time for which the loop of each process stood still since the last call, in seconds of CPU."""
        found = {}
        for name, pid in self.pids.items():
            file = self.log.parent / "stalls" / str(pid)
            if file.exists():
                found[name] = float(file.read_text())
                file.unlink()
        return found

    def rss(self) -> dict[str, int]:
        """Resident memory of each process."""
        return {name: rss_bytes(pid) for name, pid in self.pids.items()}

    def find_processes(self) -> None:
        """Notes the processes of the adapter, the front and the engine."""
        pending = [self.process.pid]
        while pending:
            pid = pending.pop()
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            pending += map(int, children)
            for child in map(int, children):
                command = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
                if "-m" in command:
                    self.pids[command[command.index("-m") + 1]] = child


@contextlib.asynccontextmanager
async def product(
    directory: Path, *flags: str, keys: tuple[str, ...] = (), **settings: str
) -> AsyncIterator[Product]:
    """The product with the embedded model and the limits of its settings.

    Args:
        directory: Where its log and its keys are.
        flags: Further flags of `qwenvl serve`.
        keys: The API keys; none = no authentication.
        settings: Settings without a flag there, by their names.
    """
    http, grpc_port, service_metrics, adapter_metrics = free_ports(4)
    log = directory / "product.log"
    command = [sys.executable, "-m", "inference_service.cli", "serve", "--cpu-threads=1"]
    command += [f"--http-address=127.0.0.1:{http}", f"--grpc-address=127.0.0.1:{grpc_port}"]
    command += ["--admin-address=none", "--response-store=memory", *flags]
    metrics = {"inference_service": service_metrics, "rest_adapter": adapter_metrics}
    settings = {
        "metrics_address": f"127.0.0.1:{metrics['inference_service']}",
        "http_metrics_address": f"127.0.0.1:{metrics['rest_adapter']}",
        "response_truncation": "true",
    } | settings
    if keys:
        (directory / "keys").write_text("\n".join(keys))
        command.append(f"--api-key-file={directory / 'keys'}")
    stalls = directory / "stalls"
    stalls.mkdir()
    environment = os.environ | {f"QWENVL_{name.upper()}": text for name, text in settings.items()}
    environment["PYTHONPATH"] = os.pathsep.join([str(PROBE), *filter(None, sys.path)])
    environment["LOOP_PROBE"] = str(stalls)
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, env=environment, stdout=output, stderr=output
        )
    found = Product(http, grpc_port, process, log, metrics)
    try:
        await _wait_ready(found)
        found.find_processes()
        yield found
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
            async with asyncio.timeout(60):
                await process.wait()


async def _wait_ready(found: Product) -> None:
    async with asyncio.timeout(START_S), httpx.AsyncClient() as client:
        while True:
            assert found.process.returncode is None, found.log.read_text()[-2000:]
            with contextlib.suppress(httpx.TransportError):
                if (await client.get(f"http://127.0.0.1:{found.http}/ready")).status_code == 200:
                    return
            await asyncio.sleep(0.1)


@dataclass
class Seen:
    """What the neighbour saw: seconds by the kind of what it asked, errors, and memory by process."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    rss: dict[str, int] = field(default_factory=dict)

    def p99(self, kind: str) -> float:
        """The 99th percentile, or the largest of few."""
        times = sorted(self.seconds[kind])
        return times[max(0, round(len(times) * 0.99) - 1)]

    def __str__(self) -> str:
        times = (
            f"{kind} {len(times)}: median {sorted(times)[len(times) // 2]:.3f}, p99 {self.p99(kind):.3f}"
            for kind, times in sorted(self.seconds.items())
        )
        memory = (f"{name} {rss / MIB:.0f} MiB" for name, rss in sorted(self.rss.items()))
        return "; ".join([*times, *memory, f"errors {self.errors[:3]}"])


class Client:
    """Asks over REST and gRPC, with and without an image, one after the other, and for the health of both."""

    def __init__(self, product: Product, key: str = "") -> None:
        self._product = product
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    async def beside(self, attack: Callable[[], Awaitable[None]] | None, seconds: float) -> Seen:
        """Asks while an attack runs, for at least so many seconds."""
        seen = Seen()
        base = f"http://127.0.0.1:{self._product.http}"
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with (
            httpx.AsyncClient(base_url=base, headers=self._headers, timeout=60) as client,
            grpc.aio.insecure_channel(
                f"127.0.0.1:{self._product.grpc}", options=options
            ) as channel,
        ):
            asking = self._questions(client, channel)
            attacking = asyncio.ensure_future(attack()) if attack else None
            probing = asyncio.ensure_future(self._probe(client, channel, seen))
            end = time.monotonic() + seconds
            while time.monotonic() < end or (attacking and not attacking.done()):
                for kind, ask in asking.items():
                    await self._timed(seen, kind, ask)
                seen.rss = {n: max(r, seen.rss.get(n, 0)) for n, r in self._product.rss().items()}
            probing.cancel()
            await asyncio.gather(probing, return_exceptions=True)
            if attacking is not None:
                await attacking
        return seen

    def _questions(
        self, client: httpx.AsyncClient, channel: grpc.aio.Channel
    ) -> dict[str, Callable[[], Awaitable[None]]]:
        chat = chat_grpc.ChatServiceStub(channel)
        metadata = tuple(self._headers.items())

        async def over_grpc(*parts: Any) -> None:
            spec = spec_of(*parts, model=MODEL, sampling={"max_tokens": 4})
            request = chat_pb.CreateChatCompletionRequest(spec=spec)
            await chat.CreateChatCompletion(request, metadata=metadata, timeout=60)

        async def over_rest(content: object) -> None:
            body = {"model": MODEL, "max_tokens": 4}
            messages = [{"role": "user", "content": content}]
            answer = await client.post("/v1/chat/completions", json=body | {"messages": messages})
            answer.raise_for_status()

        picture = {"type": "image_url", "image_url": {"url": IMAGE_URL}}
        return {
            "REST": lambda: over_rest("What is this?"),
            "gRPC": lambda: over_grpc("What is this?"),
            "REST image": lambda: over_rest([picture, {"type": "text", "text": "What?"}]),
            "gRPC image": lambda: over_grpc(image_part(IMAGE), "What?"),
        }

    async def _probe(
        self, client: httpx.AsyncClient, channel: grpc.aio.Channel, seen: Seen
    ) -> None:
        health = health_pb2_grpc.HealthStub(channel)

        async def over_rest() -> None:
            # Each over a connection of its own, as a kubelet does.
            (await client.get("/health", headers={"connection": "close"})).raise_for_status()

        async def over_grpc() -> None:
            await health.Check(health_pb2.HealthCheckRequest(), timeout=20)

        while True:
            await self._timed(seen, "health REST", over_rest)
            await self._timed(seen, "health gRPC", over_grpc)
            await asyncio.sleep(0.02)

    async def _timed(self, seen: Seen, kind: str, ask: Callable[[], Awaitable[None]]) -> None:
        begin = time.monotonic()
        try:
            await ask()
        except (httpx.HTTPError, grpc.aio.AioRpcError) as error:
            seen.errors.append(f"{kind}: {error!r:.300}")
            return
        seen.seconds.setdefault(kind, []).append(time.monotonic() - begin)
