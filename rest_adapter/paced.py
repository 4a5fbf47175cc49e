"""Sends what is large no faster than the client reads it, as long as it reads fast enough."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rest_adapter.body import RequestBody


_PIECE_BYTES: Final = 64 * 1024


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
        view, pace = memoryview(self.body), self._pace_from()
        with contextlib.suppress(TimeoutError):  # an unfinished response closes the connection
            for begin in range(0, max(1, len(view)), _PIECE_BYTES):
                end = begin + _PIECE_BYTES
                piece = bytes(view[begin:end])
                async with asyncio.timeout(pace.left_s):
                    await send(
                        {
                            "type": "http.response.body",
                            "body": piece,
                            "more_body": end < len(view),
                        }
                    )
                pace.note(len(piece))
