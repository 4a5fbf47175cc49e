"""An HTTP/2 client that does what no honest one does: stops in the middle of a message, or never opens its window.

Only what gRPC calls need of RFC 9113 and RFC 7541; header fields are literals without compression.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
import contextlib
import struct
from typing import Self


DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
INITIAL_WINDOW_SIZE = 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Connection:
    """One connection.

    Args:
        window: The window of every stream for what the server sends, in bytes; it is never opened further.
        answers_pings: Answer pings.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        window: int,
        answers_pings: bool,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._window = 2**16 - 1  # of the connection, for what we send
        self._stream_window = 2**16 - 1
        self._stream_windows: dict[int, int] = {}
        self._opened = asyncio.Event()
        self._next = 1
        self.ended: set[int] = set()
        self.received: dict[int, int] = {}
        self.closed = False
        self.going_away = False
        self._answers_pings = answers_pings
        writer.write(PREFACE + _frame(SETTINGS, 0, 0, struct.pack(">HL", 4, window)))
        self._reading = asyncio.create_task(self._read())

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        port: int,
        *,
        window: int = 2**16 - 1,
        answers_pings: bool = True,
        host: str = "127.0.0.1",
    ) -> AsyncIterator[Self]:
        """Connects to a port of this machine, from the host 127.0.0.N."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(host, 0))
        connection = cls(reader, writer, window, answers_pings)
        try:
            yield connection
        finally:
            connection._reading.cancel()
            writer.close()

    async def call(self, method: str, *, metadata: dict[str, str] | None = None) -> int:
        """Opens a stream for a call and returns its number."""
        stream, self._next = self._next, self._next + 2
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": method,
            ":authority": "localhost",
            "te": "trailers",
            "content-type": "application/grpc",
        } | (metadata or {})
        block = b"".join(b"\x00" + _string(name) + _string(value) for name, value in fields.items())
        self._stream_windows[stream] = self._stream_window
        self._writer.write(_frame(HEADERS, END_HEADERS, stream, block))
        await self._writer.drain()
        return stream

    async def send(
        self, stream: int, data: bytes, *, end: bool = False, timeout_s: float = 10.0
    ) -> int:
        """Sends bytes as far as the server's windows allow within the time; returns how many.

        Args:
            stream: The stream.
            data: The bytes.
            end: The client sends no more.
            timeout_s: The time.
        """
        sent = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while sent < len(data) and stream not in self.ended and not self.closed:
                    size = min(2**14, len(data) - sent, self._room(stream))
                    if size <= 0:
                        self._opened.clear()
                        await self._opened.wait()
                        continue
                    last = end and sent + size == len(data)
                    part = data[sent : sent + size]
                    self._writer.write(_frame(DATA, END_STREAM * last, stream, part))
                    self._window -= size
                    self._stream_windows[stream] -= size
                    sent += size
                    await self._writer.drain()
        return sent

    async def flood(self, kind: int, payload: bytes, count: int) -> None:
        """Sends a frame of the connection again and again, until the server has had enough."""
        frames = _frame(kind, 0, 0, payload) * 1000
        with contextlib.suppress(OSError):
            for _ in range(0, count, 1000):
                if self.closed:
                    return
                self._writer.write(frames)
                await self._writer.drain()

    def _room(self, stream: int) -> int:
        return min(self._window, self._stream_windows[stream])

    async def _read(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                head = await self._reader.readexactly(9)
                size, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
                stream = int.from_bytes(head[5:], "big") & 0x7FFFFFFF
                self._handle(kind, flags, stream, await self._reader.readexactly(size))
        self.closed = True
        self._opened.set()

    def _handle(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if flags & ACK and kind in (SETTINGS, PING):
            return
        if kind == SETTINGS:
            self._apply(payload)
            self._writer.write(_frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and self._answers_pings:
            self._writer.write(_frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload, "big")
        elif kind == WINDOW_UPDATE and stream in self._stream_windows:
            self._stream_windows[stream] += int.from_bytes(payload, "big")
        elif kind == DATA:
            self.received[stream] = self.received.get(stream, 0) + len(payload)
        self.going_away |= kind == GOAWAY
        if kind == RST_STREAM or (kind == HEADERS and flags & END_STREAM):
            self.ended.add(stream)
        self._opened.set()

    def _apply(self, settings: bytes) -> None:
        for name, value in struct.iter_unpack(">HL", settings):
            if name == INITIAL_WINDOW_SIZE:
                change, self._stream_window = value - self._stream_window, value
                for number in self._stream_windows:
                    self._stream_windows[number] += change


def message(payload: bytes, *, size: int | None = None) -> bytes:
    """A gRPC message; `size` is what its prefix says, if that is not true."""
    return b"\x00" + struct.pack(">L", len(payload) if size is None else size) + payload


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return (
        len(payload).to_bytes(3, "big") + bytes((kind, flags)) + struct.pack(">L", stream) + payload
    )


def _string(text: str) -> bytes:
    """A string literal of RFC 7541, section 5.2."""
    data = text.encode()
    if len(data) < 127:
        return bytes((len(data),)) + data
    rest, length = len(data) - 127, bytearray((127,))
    while rest >= 128:
        length.append(rest % 128 + 128)
        rest //= 128
    return bytes((*length, rest)) + data
