"""Loopback servers, lying resolvers and fetchers for the tests of the guarded fetch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
import contextlib
import ssl
from typing import Any

import pytest

from inference_service.errors import ServiceError
from inference_service.media.fetch import MediaFetcher
from inference_service.media.policy import AllowedHost, FetchPolicy


PUBLIC = "93.184.216.34"
Script = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


class FakeResolver:
    """Answers from a table; a list of answers is used up one by one, as a rebinding name server does."""

    def __init__(self, table: dict[str, list[list[str]]] | None = None) -> None:
        self.table = table or {}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        answers = self.table.get(host)
        if answers is None:
            return [host] if ":" in host or host.replace(".", "").isdigit() else []
        return answers.pop(0) if len(answers) > 1 else answers[0]


@contextlib.asynccontextmanager
async def server(
    script: Script, *, tls: ssl.SSLContext | None = None, address: str = "127.0.0.1"
) -> AsyncIterator[int]:
    """A loopback server that reads a request and then does as told; gives its port."""

    answering: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(await reader.readuntil(b"\r\n\r\n"), writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has gone
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering.add(asyncio.get_running_loop().create_task(answer(reader, writer)))

    listener = await asyncio.start_server(accept, address, 0, ssl=tls)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        await asyncio.sleep(0)
        for task in answering:
            task.cancel()
        await asyncio.gather(*answering, return_exceptions=True)


def says(head: str, body: bytes = b"") -> Script:
    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        await writer.drain()

    return script


def fetcher(*allowed: str, resolver: FakeResolver | None = None, **changes: Any) -> MediaFetcher:
    policy = FetchPolicy(allowed_hosts=tuple(map(AllowedHost.parse, allowed)), **changes)
    return MediaFetcher(policy, resolver or FakeResolver())


async def refused(what: MediaFetcher, uri: str, kind: type[ServiceError]) -> ServiceError:
    with pytest.raises(kind) as caught:
        await what.fetch(uri, field="f")
    assert caught.value.field == "f"
    for hidden in ("127.", "169.", "10.", "::", "secret"):
        assert hidden not in caught.value.message
    return caught.value
