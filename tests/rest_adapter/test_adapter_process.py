"""`rest-adapter` as a process: its end, and heads of requests that never end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
import contextlib
import json
import signal
import socket
import sys
import time

import pytest

from qwenvl.stop_signals import ECHO_S
from tests.rest_adapter.conftest import fake_service, wait_until
from tests.rest_adapter.fake_service import Seen
from tests.support.ports import free_port


HARD_OF_HEARING = """
import sys
from qwenvl.stop_signals import StopSignals
from rest_adapter.__main__ import main

StopSignals.__init__.__defaults__ = (30.0,)
sys.exit(main())
"""
"""The program, where signals are echoes of the first one for half a minute."""


@contextlib.asynccontextmanager
async def running_adapter(
    host: str = "127.0.0.1",
    command: Sequence[str] = ("-m", "rest_adapter"),
    flags: Sequence[str] = (),
) -> AsyncIterator[tuple[asyncio.subprocess.Process, int, Seen]]:
    seen, port = Seen(), free_port()
    async with fake_service(seen) as (grpc_port, _):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *command),
            *("--http-address", f"{host}:{port}", "--grpc-target", f"dns:///127.0.0.1:{grpc_port}"),
            *("--log-level", "error"),
            *flags,
        )
        try:
            await until(lambda: is_listening(port) or process.returncode is not None)
            yield process, port, seen
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def until(condition: Callable[[], bool]) -> None:
    """Polls in a thread: the fake service runs in this event loop."""
    await asyncio.to_thread(wait_until, condition, 60)


async def open_stream(
    port: int, question: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Opens a stream and waits for its first event; the caller closes it."""
    messages = [{"role": "user", "content": question}]
    body = json.dumps({"model": "demo", "stream": True, "messages": messages}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await reader.readuntil(b"assistant")
    return reader, writer


async def test_sigterm_finishes_streams_and_ends_with_zero() -> None:
    async with running_adapter() as (process, port, _), asyncio.timeout(60):
        streams = [await open_stream(port, "slow 1.5") for _ in range(8)]
        process.send_signal(signal.SIGTERM)
        for reader, writer in streams:
            assert b"[DONE]" in await reader.read()
            writer.close()
        assert await process.wait() == 0


async def test_one_wish_to_stop_that_arrives_several_times_cuts_no_stream() -> None:
    """As with systemd and `kill -- -GROUP`, where a parent passes on what its child has got already."""
    async with (
        running_adapter(command=("-c", HARD_OF_HEARING)) as (process, port, _),
        asyncio.timeout(60),
    ):
        reader, writer = await open_stream(port, "slow 1.5")
        for _ in range(5):
            process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.01)
        assert b"[DONE]" in await reader.read()
        writer.close()
        assert await process.wait() == 0


@pytest.mark.parametrize("host", ["[::]", "", "0.0.0.0", "localhost"])
async def test_every_address_of_the_machine_means_ipv4_too(host: str) -> None:
    async with running_adapter(host) as (process, _, _):
        assert process.returncode is None  # it listens on 127.0.0.1


async def test_a_taken_port_is_refused_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "rest_adapter", "--http-address", address),
            *("--log-level", "error"),
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    assert errors.decode().startswith(f"--http-address={address} (QWENVL_HTTP_ADDRESS): ")
    assert errors.count(b"\n") == 1


async def test_the_end_of_the_drain_time_ends_requests_with_an_error() -> None:
    """Before whoever has sent the signal kills the process: a stream then ends with an error event."""
    flags = ("--drain-timeout-s", "3")
    async with running_adapter(flags=flags) as (process, port, seen), asyncio.timeout(60):
        short = await open_stream(port, "slow 0.3")
        long = [await open_stream(port, "hang") for _ in range(3)]
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert b"[DONE]" in await short[0].read()
        for reader, _ in long:
            rest = await reader.read()
            assert b'"code":"overloaded"' in rest
            assert b"[DONE]" not in rest
            assert rest.endswith(b"0\r\n\r\n")
        assert time.monotonic() - begin >= 3
        assert await process.wait() == 0
        await until(lambda: seen.running == 0)
        for _, writer in (short, *long):
            writer.close()


async def test_the_end_of_the_drain_time_does_not_wait_for_a_client_that_does_not_read() -> None:
    flags = ("--drain-timeout-s", "0.5")
    async with running_adapter(flags=flags) as (process, port, _), asyncio.timeout(60):
        _, writer = await open_stream(port, "z" * 60_000)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            assert await process.wait() == 0
        writer.close()


async def test_second_signal_ends_at_once() -> None:
    async with running_adapter() as (process, port, seen), asyncio.timeout(60):
        reader, writer = await open_stream(port, "hang")
        process.send_signal(signal.SIGTERM)
        await until(lambda: not is_listening(port))
        await asyncio.sleep(ECHO_S)
        assert process.returncode is None
        process.send_signal(signal.SIGTERM)
        rest = await reader.read()
        assert b'"code":"overloaded"' in rest
        assert b"[DONE]" not in rest
        assert rest.endswith(b"0\r\n\r\n")
        assert await process.wait() == 0
        await until(lambda: seen.running == 0)
        writer.close()


async def test_second_signal_answers_whoever_still_waits() -> None:
    async with running_adapter() as (process, port, seen), asyncio.timeout(60):
        messages = [{"role": "user", "content": "hang"}]
        body = json.dumps({"model": "demo", "messages": messages}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
        writer.write(b"content-length: %d\r\n\r\n" % len(body) + body)
        await until(lambda: seen.running == 1)
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            await until(lambda: not is_listening(port))
            await asyncio.sleep(ECHO_S)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after" in answer
        assert await process.wait() == 0
        writer.close()


async def test_second_signal_does_not_wait_for_a_client_that_does_not_read() -> None:
    async with running_adapter() as (process, port, _), asyncio.timeout(60):
        _, writer = await open_stream(port, "z" * 60_000)
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            await until(lambda: not is_listening(port))
            await asyncio.sleep(ECHO_S)
        async with asyncio.timeout(20):
            await process.wait()
        writer.close()


async def test_endless_head_is_cut() -> None:
    async with running_adapter() as (_, port, _), asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health HTTP/1.1\r\nx: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(64):
                writer.write(b"a" * 65536)
                await writer.drain()
        with contextlib.suppress(ConnectionError):
            assert b" 200 " not in await reader.read()
        writer.close()
        assert is_listening(port)
