"""Bodies in chunks, whatever part of them a read of the network returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpcore
import pytest

from inference_service.media.exchange import Progress, _Stream


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Pieces(httpcore.AsyncNetworkStream):
    """A connection that delivers these pieces, one a read at most."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = [*pieces]

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        if not self._pieces:
            return b""
        data = self._pieces.pop(0)
        if len(data) > max_bytes:
            self._pieces.insert(0, data[max_bytes:])
        return data[:max_bytes]

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        del buffer

    async def aclose(self) -> None:
        pass

    def get_extra_info(self, info: str) -> Any:
        del info


async def received(pieces: Sequence[bytes]) -> int:
    """Reads as `media.body` does."""
    progress = Progress()
    stream = _Stream(Pieces(pieces), progress)
    origin = httpcore.Origin(b"http", b"h", 80)
    connection = httpcore.AsyncHTTP11Connection(origin, stream)
    size = 0
    extensions = {"trace": progress.trace}
    async with connection.stream(
        "GET", "http://h/", headers=[("Host", "h")], extensions=extensions
    ) as answer:
        progress.in_chunks = True
        async for piece in answer.aiter_stream():
            progress.idle_bytes = 0
            size += len(piece)
    return size


@pytest.mark.parametrize("size", [1, 0x1FFF, 0x2000, 0x3FFA, 0x4000, 0x4001, 0x8000, 0x20000])
async def test_chunks_whose_parts_arrive_one_by_one(size: int) -> None:
    parts = [b"%x\r\n" % size, b"x" * size, b"\r\n"]
    end = b"0\r\n\r\n"
    whole = b"".join(parts) * 4 + end
    cuts = [whole[start : start + 65536] for start in range(0, len(whole), 65536)]
    for pieces in ([*parts * 4, end], [b"".join(parts)] * 4 + [end], cuts):
        assert await received([HEAD, *pieces]) == 4 * size
