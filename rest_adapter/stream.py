"""Sends an answer as Server-Sent Events until it ends or the client disconnects.

The route renders the events; the dialect defines the end of a stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import grpc
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qwenvl.aio import Events
from rest_adapter.dialect import Dialect, dialect_of
from rest_adapter.disconnect import until_disconnected
from rest_adapter.errors import ApiError, internal


HEARTBEAT: Final = b": still here\n\n"
_Event = TypeVar("_Event")


class EventStream(Response, Generic[_Event]):
    """A streamed answer: ends with the dialect's end of a stream, or with an error event instead.

    If the client disconnects, the gRPC call is cancelled; a slow client slows down the call.

    Args:
        events: The answer's events.
        render: Returns the bytes of an event: any number of complete Server-Sent Events. May raise `ApiError`, which
            ends the stream.
        heartbeat_s: Seconds without output after which a comment is sent.
        to_error: Converts a gRPC error.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: Events[_Event],
        render: Callable[[_Event], bytes],
        *,
        heartbeat_s: float,
        to_error: Callable[[grpc.RpcError], ApiError],
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._render = render
        self._heartbeat_s = heartbeat_s
        self._to_error = to_error
        self._last_sent_s = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events until they end or the client disconnects."""
        pump = asyncio.create_task(self._pump(send, dialect_of(scope)))
        others = (
            asyncio.create_task(until_disconnected(receive)),
            asyncio.create_task(self._beat(send)),
        )
        try:
            await asyncio.wait((pump, *others), return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
        finally:
            self._events.cancel()
            for task in (pump, *others):
                task.cancel()
            await asyncio.gather(pump, *others, return_exceptions=True)

    async def _pump(self, send: Send, dialect: Dialect) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        last = dialect.stream_end
        try:
            async for event in self._events:
                if chunk := self._render(event):
                    await self._send(send, chunk)
        except grpc.aio.AioRpcError as error:
            last = dialect.render_error_event(self._to_error(error))
        except ApiError as error:
            last = dialect.render_error_event(error)
        except Exception:
            # The status line has been sent, so the error can only be an event; details go to the log.
            await self._send(send, dialect.render_error_event(internal()), more=False)
            raise
        await self._send(send, last, more=False)

    async def _beat(self, send: Send) -> None:
        """Keeps proxies from closing an idle connection during a long prefill."""
        clock = asyncio.get_running_loop().time
        self._last_sent_s = clock()
        while True:
            await asyncio.sleep(max(0.0, self._last_sent_s + self._heartbeat_s - clock()))
            if clock() - self._last_sent_s >= self._heartbeat_s:
                await self._send(send, HEARTBEAT)

    async def _send(self, send: Send, body: bytes, *, more: bool = True) -> None:
        self._last_sent_s = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": body, "more_body": more})
