"""The body of a request: received within limits of size, speed and memory, and never left unread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
import contextlib
from dataclasses import dataclass
import math
from typing import Final

from fastapi import Request
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rest_adapter.content_encoding import Decoder, decoder_of
from rest_adapter.errors import ApiError, of_reason, too_large


LINGER_S: Final = 10.0
LINGER_SILENCE_S: Final = 2.0
"""After an early answer the rest of a body is discarded for so long, because many clients read only after writing."""

_SMALL_BODY_BYTES: Final = 2**20
_SHARE_OF_LARGE_BODIES: Final = 0.75
_RETRY_AFTER_S: Final = 2.0
_DISCARDED_BYTES_PER_S: Final = 64 * 2**20


class BodyBudget:
    """The bytes of request bodies that the adapter holds, of all connections together.

    Small bodies have a share of their own, so that large uploads cannot exclude them.

    Args:
        max_bytes: The maximum.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._used_bytes = 0
        self._discarding = 0

    def take(self, count: int, held: int) -> None:
        """Takes bytes for a body that already holds `held` bytes.

        Raises:
            ApiError: The budget is used up.
        """
        large = held + count > _SMALL_BODY_BYTES
        limit = self._max_bytes * (_SHARE_OF_LARGE_BODIES if large else 1)
        if self._used_bytes + count > limit:
            maximum = self._max_bytes // 2**20
            text = f"All request bodies together exceed {maximum} MiB (--body-budget-mib); try again later."
            raise of_reason("QUEUE_FULL", text, retry_after_s=_RETRY_AFTER_S)
        self._used_bytes += count

    def give_back(self, count: int) -> None:
        """Gives bytes back."""
        self._used_bytes -= count

    @contextlib.contextmanager
    def discarding(self) -> Iterator[Callable[[int], float]]:
        """While a body is being discarded; all of them share one rate, so that a flood does not take all the time.

        Yields:
            A function that returns how many seconds to wait after so many bytes.
        """
        self._discarding += 1
        try:
            yield lambda count: count * self._discarding / _DISCARDED_BYTES_PER_S
        finally:
            self._discarding -= 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimits:
    """The limits of one body.

    Attributes:
        max_bytes: Maximum size, as sent and decoded.
        silence_s: Maximum time without a byte; also the time that is allowed beyond the minimum rate.
        min_bytes_per_s: Minimum rate.
        budget: The memory of all bodies.
    """

    max_bytes: int
    silence_s: float
    min_bytes_per_s: int
    budget: BodyBudget


class RequestBody:
    """The body of one request.

    Attributes:
        is_complete: Whether all of it has been received.
        size: Bytes that `read` has received and decoded.
        max_bytes: Its maximum size.

    Args:
        headers: The headers of the request.
        receive: The ASGI function.
        limits: The limits.
    """

    def __init__(self, headers: Headers, receive: Receive, limits: BodyLimits) -> None:
        self._headers = headers
        self._receive = receive
        self._limits = limits
        self._taken = 0
        self._received = 0
        framed = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        self.is_complete = not framed
        self.size = 0
        self.max_bytes = limits.max_bytes

    async def receive(self) -> Message:
        """The ASGI function, which also notes the end of the body."""
        message = await self._receive()
        self._received += len(message.get("body", b""))
        if not message.get("more_body", False):
            self.is_complete = True
        return message

    async def read(self) -> bytearray:
        """Receives the whole body and decodes its content encoding.

        Raises:
            ApiError: It is too large, too slow, or has an unknown or malformed encoding; or the budget is used up.
            ClientDisconnect: The client has disconnected.
        """
        decoder = decoder_of(", ".join(self._headers.getlist("content-encoding")))
        length = self._headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._limits.max_bytes:
            raise self._too_large()
        data = bytearray()
        try:
            await self._read_into(data, decoder)
        except BaseException:
            self.release()
            raise
        return data

    def take(self, count: int) -> None:
        """Takes memory for `count` bytes until the end of the request.

        Raises:
            ApiError: The budget is used up.
        """
        self._limits.budget.take(count, self._taken)
        self._taken += count

    def release(self) -> None:
        """Gives the memory back."""
        self._limits.budget.give_back(self._taken)
        self._taken = 0

    def patience_s(self, count: int) -> float:
        """How long a client may take for so many bytes, in seconds."""
        return self._limits.silence_s + count / self._limits.min_bytes_per_s

    async def discard(self) -> None:
        """Receives and discards the rest for a short time."""
        last = self._received + 2 * self._limits.max_bytes
        with contextlib.suppress(TimeoutError), self._limits.budget.discarding() as pause_s:
            async with asyncio.timeout(LINGER_S):
                while not self.is_complete and self._received < last:
                    async with asyncio.timeout(LINGER_SILENCE_S):
                        message = await self.receive()
                    await asyncio.sleep(pause_s(len(message.get("body", b""))))

    async def _read_into(self, data: bytearray, decoder: Decoder | None) -> None:
        begin = asyncio.get_running_loop().time()
        while not self.is_complete:
            piece = await self._next_piece(begin)
            if self._received > self._limits.max_bytes:
                raise self._too_large()
            if decoder is None:
                self._append(data, piece)
                continue
            for decoded in decoder.decode(piece):
                self._append(data, decoded)
                await asyncio.sleep(0)
        if decoder is not None:
            decoder.finish()

    async def _next_piece(self, begin: float) -> bytes:
        loop, limits = asyncio.get_running_loop(), self._limits
        slowest = begin + limits.silence_s + self._received / limits.min_bytes_per_s
        try:
            async with asyncio.timeout_at(min(slowest, loop.time() + limits.silence_s)):
                message = await self.receive()
        except TimeoutError:
            text = (
                f"The body is too slow: {self._received} bytes in {math.ceil(loop.time() - begin)} s. The limits are "
                f"{limits.silence_s:g} s without a byte (--body-timeout-s) and, after these, a mean of "
                f"{limits.min_bytes_per_s / 1024:g} KiB/s (--min-body-kib-per-s)."
            )
            raise ApiError(408, text, reason="BODY_TIMEOUT") from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece = message.get("body", b"")
        assert isinstance(piece, bytes)
        return piece

    def _append(self, data: bytearray, piece: bytes) -> None:
        if len(data) + len(piece) > self._limits.max_bytes:
            raise self._too_large()
        self.take(len(piece))
        data += piece
        self.size = len(data)

    def _too_large(self) -> ApiError:
        maximum = self._limits.max_bytes // 2**20
        return too_large(f"The body has more than {maximum} MiB, the maximum (--max-body-mib).")


def body_of(request: Request) -> RequestBody:
    """The body of a request."""
    body = request.state.body
    assert isinstance(body, RequestBody)
    return body


class Bodies:
    """ASGI middleware that gives every request its `RequestBody`, and cares for what the application does not read.

    A response before the end of the body tells the client that the connection will be closed. The rest of the body is
    discarded for a short time before: if the connection were closed at once, the client, which may still be sending,
    would get a reset in place of the response.
    """

    def __init__(self, app: ASGIApp, limits: BodyLimits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = RequestBody(Headers(scope=scope), receive, self._limits)
        scope.setdefault("state", {})["body"] = body

        is_held_open = False

        async def send_early(message: Message) -> None:
            nonlocal is_held_open
            if not body.is_complete:
                if message["type"] == "http.response.start":
                    kept = [pair for pair in message["headers"] if pair[0].lower() != b"connection"]
                    message = {**message, "headers": [*kept, (b"connection", b"close")]}
                elif not message.get("more_body", False):
                    is_held_open = True
                    message = {**message, "more_body": True}
            await send(message)

        try:
            await self._app(scope, body.receive, send_early)
        finally:
            body.release()
        if is_held_open:
            await body.discard()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
