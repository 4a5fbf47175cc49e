"""The body of a request: received within limits of size, speed and memory, and never left unread."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
import contextlib
from dataclasses import dataclass
import math
import time
from typing import Any, Final

from fastapi import Request
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rest_adapter.body_budget import BodyBudget, Holding
from rest_adapter.content_encoding import Decoder, decoder_of
from rest_adapter.dropped import drop_body
from rest_adapter.errors import ApiError, too_large
from rest_adapter.pace import Pace


LINGER_S: Final = 10.0
LINGER_SILENCE_S: Final = 2.0
"""After an early answer the rest of a body is discarded for so long, because many clients read only after writing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimits:
    """The limits of one body.

    Attributes:
        max_bytes: Maximum size, as sent and decoded.
        silence_s: Maximum time without a byte.
        min_bytes_per_s: Minimum mean rate over every such time.
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
        state: The state of the request, whose `caller` is known when something is taken.
    """

    def __init__(
        self, headers: Headers, receive: Receive, limits: BodyLimits, state: Mapping[str, Any]
    ) -> None:
        self._headers = headers
        self._receive = receive
        self._limits = limits
        self._state = state
        self._holding: Holding | None = None
        self._gave_way = False
        self._timeout: asyncio.Timeout | None = None
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

        def give_way() -> None:
            self._gave_way = True
            data.clear()
            self.release()
            if self._timeout is not None and not self._timeout.expired():
                self._timeout.reschedule(0.0)

        self._hold().give_way = give_way
        try:
            await self._read_into(data, decoder)
        except BaseException:
            self.release()
            raise
        finally:
            self._hold().give_way = None
        return data

    def take(self, count: int) -> None:
        """Takes memory for `count` bytes until the end of the request.

        Raises:
            ApiError: The budget is used up.
        """
        self._limits.budget.take(self._hold(), count)

    def take_for_answer(self, count: int) -> None:
        """Takes memory for `count` bytes of the answer until the end of the request.

        Raises:
            ApiError: The budget and the reserve of answers are used up.
        """
        self._limits.budget.take_for_answer(self._hold(), count)

    @property
    def largest_answer_bytes(self) -> int:
        """What can be taken for an answer at most, when nobody else takes anything."""
        return self._limits.budget.largest_answer_bytes

    def release(self) -> None:
        """Gives the memory back."""
        self._limits.budget.give_back(self._hold())

    def pace_of_answer(self) -> Pace:
        """How slow the client may be with the answer from now on."""
        return Pace(self._limits.silence_s, self._limits.min_bytes_per_s, saved=True)

    def _hold(self) -> Holding:
        if self._holding is None:
            self._holding = Holding(str(self._state.get("caller", "")))
        return self._holding

    async def discard(self) -> None:
        """Receives and discards the rest for a short time."""
        last = self._received + 2 * self._limits.max_bytes
        with contextlib.suppress(TimeoutError), self._limits.budget.discarding() as pause_s:
            async with asyncio.timeout(LINGER_S):
                dropped = drop_body(self._state)
                while not self.is_complete and self._received < last:
                    async with asyncio.timeout(LINGER_SILENCE_S):
                        size = len((await self.receive()).get("body", b""))
                    self._received += dropped.num_bytes
                    size += dropped.num_bytes
                    dropped = drop_body(self._state)
                    await asyncio.sleep(pause_s(size))

    async def _read_into(self, data: bytearray, decoder: Decoder | None) -> None:
        begin = time.monotonic()
        pace = Pace(self._limits.silence_s, self._limits.min_bytes_per_s)
        while not self.is_complete:
            piece = await self._next_piece(pace, begin)
            if self._received > self._limits.max_bytes:
                raise self._too_large()
            size = len(data)
            if decoder is None:
                self._append(data, piece)
            else:
                for decoded in decoder.decode(piece):
                    self._append(data, decoded)
                    await asyncio.sleep(0)
            # What adds nothing to the body, such as empty blocks, must not keep it in memory.
            pace.note(min(len(piece), len(data) - size))
        self._check_way()
        if decoder is not None:
            decoder.finish()

    async def _next_piece(self, pace: Pace, begin: float) -> bytes:
        self._check_way()
        limits = self._limits
        try:
            async with asyncio.timeout(pace.left_s) as self._timeout:
                message = await self.receive()
        except TimeoutError:
            self._check_way()
            text = (
                f"The body is too slow: {self._received} bytes in {math.ceil(time.monotonic() - begin)} s. The limits "
                f"are {limits.silence_s:g} s without a byte (--body-timeout-s) and, over every such time, a mean of "
                f"{limits.min_bytes_per_s / 1024:g} KiB/s (--min-body-kib-per-s)."
            )
            raise ApiError(408, text, reason="BODY_TIMEOUT") from None
        finally:
            self._timeout = None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece = message.get("body", b"")
        assert isinstance(piece, bytes)
        return piece

    def _check_way(self) -> None:
        if self._gave_way:
            raise self._limits.budget.full(
                f"The request body, of which {self._received} bytes had come, gave way to others before its end"
            )

    def _append(self, data: bytearray, piece: bytes) -> None:
        self._check_way()
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
        state = scope.setdefault("state", {})
        body = state["body"] = RequestBody(Headers(scope=scope), receive, self._limits, state)
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
