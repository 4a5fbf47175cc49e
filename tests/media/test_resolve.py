"""The system's resolver, against a name server on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
import contextlib
import ipaddress
import socket
import threading
from typing import cast

import pytest

from inference_service.media.resolve import SystemResolver


class NameServer(asyncio.DatagramProtocol):
    """Answers A and AAAA questions from a table; names that begin with `hung` get no answer."""

    def __init__(self, table: dict[str, list[str]]) -> None:
        self.table = table

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        labels, at = [], 12
        while data[at]:
            labels.append(data[at + 1 : at + 1 + data[at]].decode().lower())
            at += data[at] + 1
        name, kind = ".".join(labels), int.from_bytes(data[at + 1 : at + 3], "big")
        if name.startswith("hung"):
            return
        known = self.table.get(name)
        answers = [
            packed
            for packed in (ipaddress.ip_address(text).packed for text in known or ())
            if len(packed) == {1: 4, 28: 16}.get(kind)
        ]
        code = 2 if name.startswith("broken") else 3 if known is None else 0
        reply = data[:2] + bytes([0x81, 0x80 | code]) + b"\0\1" + len(answers).to_bytes(2, "big")
        reply += b"\0\0\0\0" + data[12 : at + 5]
        for packed in answers:
            reply += b"\xc0\x0c" + kind.to_bytes(2, "big") + b"\0\1\0\0\0\1"
            reply += len(packed).to_bytes(2, "big") + packed
        self.transport.sendto(reply, address)


@contextlib.asynccontextmanager
async def resolver(**table: list[str]) -> AsyncIterator[SystemResolver]:
    loop = asyncio.get_running_loop()
    names = {f"{name}.example": addresses for name, addresses in table.items()}
    transport, _ = await loop.create_datagram_endpoint(
        lambda: NameServer(names), local_addr=("127.0.0.1", 0)
    )
    made = SystemResolver([f"127.0.0.1:{transport.get_extra_info('sockname')[1]}"])
    try:
        yield made
    finally:
        await made.close()
        transport.close()


async def test_all_addresses_of_a_name():
    async with resolver(both=["93.184.216.34", "2606:4700::1111"], one=["10.0.0.1"]) as resolve:
        assert sorted(await resolve("both.example", 80)) == ["2606:4700::1111", "93.184.216.34"]
        assert await resolve("one.example", 443) == ["10.0.0.1"]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("nowhere.example", socket.EAI_NONAME),
        ("empty.example", socket.EAI_NONAME),
        ("broken.example", socket.EAI_AGAIN),
    ],
)
async def test_names_without_an_address(name, error):
    async with resolver(empty=[]) as resolve, asyncio.timeout(60):
        with pytest.raises(socket.gaierror) as caught:
            await resolve(name, 80)
        assert caught.value.errno == error


async def test_addresses_are_not_looked_up():
    resolve = SystemResolver(["127.0.0.1:1"])
    assert await resolve("127.0.0.1", 80) == ["127.0.0.1"]
    assert await resolve("::1", 80) == ["::1"]


async def test_the_hosts_file_is_read():
    resolve = SystemResolver()
    assert set(await resolve("localhost", 80)) <= {"127.0.0.1", "::1"}
    await resolve.close()


async def test_silent_name_servers_delay_no_other_name_and_leave_no_thread():
    async with resolver(good=["93.184.216.34"]) as resolve:
        await resolve("good.example", 80)
        threads = threading.active_count()
        hung = [asyncio.ensure_future(resolve(f"hung{n}.example", 80)) for n in range(100)]
        await asyncio.sleep(0)
        async with asyncio.timeout(20):
            assert await resolve("good.example", 80) == ["93.184.216.34"]
        assert threading.active_count() == threads
        for task in hung:
            task.cancel()
        await asyncio.gather(*hung, return_exceptions=True)
        async with asyncio.timeout(20):
            assert await resolve("good.example", 80) == ["93.184.216.34"]
