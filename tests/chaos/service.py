"""A running service in processes of its own, and a well-behaved client beside the attacks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
import contextlib
from dataclasses import dataclass, field
import os
from pathlib import Path
import sys
import time

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from qwenvl.inference.v1 import message_pb2 as message_pb
from tests.grpc_api.asking import image_part, spec_of
from tests.support.images import draw
from tests.support.ports import free_ports


ROOT = Path(__file__).parents[2]
MIB = 2**20
START_S = 300
MODEL = "qwen-vl-demo"


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Service:
    """A running front with its engine."""

    port: int
    admin_port: int
    process: asyncio.subprocess.Process
    log: Path

    def channel(self) -> grpc.aio.Channel:
        options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=options)

    @property
    def rss(self) -> int:
        return rss_bytes(self.process.pid)

    @property
    def cpu_s(self) -> float:
        """CPU time of the front."""
        return cpu_seconds(self.process.pid)


@contextlib.asynccontextmanager
async def running(
    directory: Path, *flags: str, keys: tuple[str, ...] = ()
) -> AsyncIterator[Service]:
    """The service with the embedded model, as operators start it."""
    (port, admin_port), log = free_ports(2), directory / "service.log"
    key_file = directory / "keys"
    key_file.write_text("\n".join(keys))
    command = [
        *(sys.executable, "-m", "inference_service", "--cpu-threads=1"),
        *(f"--grpc-address=127.0.0.1:{port}", f"--admin-address=127.0.0.1:{admin_port}"),
        *([f"--api-key-file={key_file}"] if keys else []),
        *flags,
    ]
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, stdout=output, stderr=output
        )
    service = Service(port, admin_port, process, log)
    try:
        await _wait_ready(service)
        yield service
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
            try:
                async with asyncio.timeout(30):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
                raise


async def _wait_ready(service: Service) -> None:
    async with asyncio.timeout(START_S), service.channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="readiness")
        while True:
            assert service.process.returncode is None, service.log.read_text()[-2000:]
            with contextlib.suppress(grpc.aio.AioRpcError):
                if (await stub.Check(request, timeout=2)).status == 1:
                    return
            await asyncio.sleep(0.1)


@dataclass
class Figures:
    """What a neighbour saw, in seconds."""

    answers: list[float] = field(default_factory=list)
    checks: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    rss: int = 0

    @property
    def p99(self) -> float:
        return sorted(self.answers)[max(0, round(len(self.answers) * 0.99) - 1)]

    def __str__(self) -> str:
        return (
            f"{len(self.answers)} answers, median {sorted(self.answers)[len(self.answers) // 2]:.3f} s,"
            f" p99 {self.p99:.3f} s, health at most {max(self.checks):.3f} s,"
            f" memory at most {self.rss / MIB:.0f} MiB, errors {self.errors[:3]}"
        )


class Neighbour:
    """A client that asks short questions one after the other, half of them with an image, and for health."""

    def __init__(self, service: Service, key: str = "") -> None:
        self._service = service
        self._metadata = (("authorization", f"Bearer {key}"),) if key else ()

    async def beside(self, attack: Callable[[], Awaitable[None]] | None, seconds: float) -> Figures:
        """Asks while an attack runs, for at least so many seconds."""
        figures = Figures()
        async with self._service.channel() as channel:
            ask, check = chat_grpc.ChatServiceStub(channel), health_pb2_grpc.HealthStub(channel)
            attacking = asyncio.ensure_future(attack()) if attack else None
            end = time.monotonic() + seconds
            while time.monotonic() < end or (attacking and not attacking.done()):
                await self._round(ask, check, figures)
            if attacking is not None:
                await attacking
        return figures

    async def _round(
        self,
        ask: chat_grpc.ChatServiceStub,
        check: health_pb2_grpc.HealthStub,
        figures: Figures,
    ) -> None:
        parts: list[str | message_pb.Part] = ["What is this?"]
        if len(figures.answers) % 2:
            parts.insert(0, image_part(draw("red", "circle").png))
        spec = spec_of(*parts, model=MODEL, sampling={"max_tokens": 8})
        request = chat_pb.CreateChatCompletionRequest(spec=spec)
        try:
            begin = time.monotonic()
            await ask.CreateChatCompletion(request, metadata=self._metadata, timeout=60)
            figures.answers.append(time.monotonic() - begin)
            begin = time.monotonic()
            await check.Check(health_pb2.HealthCheckRequest(), timeout=10)
            figures.checks.append(time.monotonic() - begin)
        except grpc.aio.AioRpcError as error:
            figures.errors.append(f"{error.code().name}: {error.details()}")
        figures.rss = max(figures.rss, self._service.rss)
        await asyncio.sleep(0.02)
