"""`rest-adapter` as a process: its end, and heads of requests that never end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
import contextlib
import json
import signal
import socket
import sys

from tests.rest_adapter.conftest import fake_service
from tests.rest_adapter.fake_service import Seen


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def running_adapter() -> AsyncIterator[tuple[asyncio.subprocess.Process, int, Seen]]:
    seen, port = Seen(), free_port()
    async with fake_service(seen) as (grpc_port, _):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "rest_adapter",
            "--http-address",
            f"127.0.0.1:{port}",
            "--grpc-target",
            f"dns:///127.0.0.1:{grpc_port}",
            "--log-level",
            "error",
        )
        try:
            async with asyncio.timeout(60):
                while not await is_listening(port):
                    assert process.returncode is None
                    await asyncio.sleep(0.05)
            yield process, port, seen
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def is_listening(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


async def open_stream(port: int, question: str) -> asyncio.StreamReader:
    messages = [{"role": "user", "content": question}]
    body = json.dumps({"model": "demo", "stream": True, "messages": messages}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await reader.readuntil(b"assistant")
    return reader


async def test_sigterm_finishes_streams_and_ends_with_zero() -> None:
    async with running_adapter() as (process, port, _), asyncio.timeout(60):
        readers = [await open_stream(port, "slow 1.5") for _ in range(8)]
        process.send_signal(signal.SIGTERM)
        for reader in readers:
            assert b"[DONE]" in await reader.read()
        assert await process.wait() == 0


async def test_second_signal_ends_at_once() -> None:
    async with running_adapter() as (process, port, seen), asyncio.timeout(60):
        await open_stream(port, "hang")
        process.send_signal(signal.SIGTERM)
        while await is_listening(port):
            await asyncio.sleep(0.05)
        assert process.returncode is None
        process.send_signal(signal.SIGTERM)
        await process.wait()
        while seen.running:
            await asyncio.sleep(0.05)


async def test_endless_head_is_cut() -> None:
    async with running_adapter() as (_, port, _), asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health HTTP/1.1\r\nx: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(64):
                writer.write(b"a" * 65536)
                await writer.drain()
        with contextlib.suppress(ConnectionError):
            assert b"200" not in await reader.read()
        assert await is_listening(port)
