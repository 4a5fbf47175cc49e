"""Sends what is large no faster than the client reads it, as long as it reads fast enough."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rest_adapter.body import RequestBody
from rest_adapter.pace import Pace


PIECE_BYTES: Final = 64 * 1024
"""What is sent at once; what is larger is sent in such pieces."""


class TooSlowError(Exception):
    """The client reads too slowly; an answer that so ends unfinished closes the connection."""


async def send_paced(
    send: Send, content: bytes | memoryview, pace: Pace, *, more: bool = False
) -> None:
    """Sends a part of a body in pieces, each when the client has read enough of those before.

    Args:
        send: The ASGI function.
        content: The part.
        pace: How slow the client may be with it.
        more: Whether other parts follow.

    Raises:
        TooSlowError: The client is slower.
    """
    view = memoryview(content)
    for begin in range(0, max(1, len(view)), PIECE_BYTES):
        end = begin + PIECE_BYTES
        piece = bytes(view[begin:end])
        is_last = end >= len(view) and not more
        try:
            async with asyncio.timeout(pace.left_s):
                await send({"type": "http.response.body", "body": piece, "more_body": not is_last})
        except TimeoutError:
            raise TooSlowError from None
        pace.note(len(piece))


class PacedResponse(Response):
    """A complete answer, whose memory, which the caller has taken, is held until the client has read it.

    A client may be no slower with all of it than with the body of a request; the connection is cut then. Times without
    a byte are bounded by the connection.

    Args:
        content: The content.
        body: The body of the request.
        options: As for `Response`.
    """

    def __init__(self, content: bytes, body: RequestBody, **options: Any) -> None:
        super().__init__(content, **options)
        self._pace_from = body.pace_of_answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""
        del scope, receive
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        with contextlib.suppress(TooSlowError):
            await send_paced(send, self.body, self._pace_from())
