"""Sends an answer as Server-Sent Events until it ends or the client disconnects.

The route renders the events; the dialect defines the end of a stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
import contextlib
from typing import Final, Generic, TypeVar

import grpc
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qwenvl.aio import Events
from rest_adapter.dialect import dialect_of, note_error
from rest_adapter.disconnect import until_disconnected
from rest_adapter.errors import ApiError, internal, stopping
from rest_adapter.metrics import CLIENT_DISCONNECTS, STREAMS_OPEN
from rest_adapter.off_loop import off_loop
from rest_adapter.paced import PIECE_BYTES, TooSlowError, send_paced


STREAM_HEADERS: Final = {"cache-control": "no-cache", "x-accel-buffering": "no"}
_LAST_EVENT_TIMEOUT_S: Final = 0.5
# At these, too, clients with `str.splitlines` split a line in two; orjson escapes all other separators.
_SEPARATORS: Final = tuple(
    (character.encode(), f"\\u{ord(character):04x}".encode())
    for character in ("\x85", "\u2028", "\u2029")
)
_Event = TypeVar("_Event")


def on_one_line(events: bytes) -> bytes:
    """Server-Sent Events with JSON as data, of which no client splits a line."""
    for separator, escaped in _SEPARATORS:
        events = events.replace(separator, escaped)
    return events


class EventStream(Response, Generic[_Event]):
    """A streamed answer: ends with the dialect's end of a stream, or with an error event instead.

    If the client disconnects, the gRPC call is cancelled; a slow client slows down the call. Who is slower with a large
    event than with a complete answer is cut off.

    Args:
        events: The answer's events.
        render: Returns the bytes of an event: any number of complete Server-Sent Events, with JSON as data. May raise
            `ApiError`, which ends the stream.
        heartbeat_s: Seconds without output after which the dialect's heartbeat is sent.
        to_error: Converts a gRPC error.
        render_error: Returns the last Server-Sent Events of a stream that fails; None = those of the dialect.
        size_of: About how many bytes `render` works on for an event; if many, it does so beside the event loop.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: Events[_Event],
        render: Callable[[_Event], bytes],
        *,
        heartbeat_s: float,
        to_error: Callable[[grpc.RpcError], ApiError],
        render_error: Callable[[ApiError], bytes] | None = None,
        size_of: Callable[[_Event], int] = lambda _: 0,
    ) -> None:
        super().__init__(headers=STREAM_HEADERS)
        del self.headers["content-length"]
        self._events = events
        self._render = render
        self._heartbeat_s = heartbeat_s
        self._to_error = to_error
        self._render_error = render_error
        self._size_of = size_of
        self._last_sent_s = 0.0
        self._is_open = False  # the client may be sent an event
        self._sending = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events until they end, the client disconnects, or the server cancels the request."""
        with STREAMS_OPEN.track_inprogress():
            await self._run(scope, receive, send)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        pump = asyncio.create_task(self._pump(scope, send))
        others = (
            asyncio.create_task(until_disconnected(receive)),
            asyncio.create_task(self._beat(scope, send)),
        )
        try:
            await asyncio.wait((pump, *others), return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                with contextlib.suppress(TooSlowError):
                    pump.result()
            elif others[0].done():
                CLIENT_DISCONNECTS.labels("stream").inc()
        except asyncio.CancelledError:
            await _end(pump, *others)
            if self._is_open:
                with contextlib.suppress(TimeoutError):  # the client may not read
                    async with asyncio.timeout(_LAST_EVENT_TIMEOUT_S):
                        await self._fail(scope, send, stopping())
            raise
        finally:
            self._events.cancel()
            await _end(pump, *others)

    async def _pump(self, scope: Scope, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        self._is_open = True
        try:
            async for event in self._events:
                if chunk := await off_loop(self._size_of(event), self._rendered, event):
                    await self._send(scope, send, chunk)
        except TooSlowError:
            raise  # it is within an event
        except grpc.aio.AioRpcError as error:
            await self._fail(scope, send, self._to_error(error))
        except ApiError as error:
            await self._fail(scope, send, error)
        except Exception:
            # The status line has been sent, so the error can only be an event; details go to the log.
            await self._fail(scope, send, internal())
            raise
        else:
            await self._send(scope, send, dialect_of(scope).stream_end, more=False)

    def _rendered(self, event: _Event) -> bytes:
        return on_one_line(self._render(event))

    async def _fail(self, scope: Scope, send: Send, error: ApiError) -> None:
        note_error(scope, error)
        render_error = self._render_error or dialect_of(scope).render_error_event
        await self._send(scope, send, on_one_line(render_error(error)), more=False)

    async def _beat(self, scope: Scope, send: Send) -> None:
        """Keeps proxies from closing an idle connection during a long prefill."""
        clock = asyncio.get_running_loop().time
        self._last_sent_s = clock()
        while True:
            await asyncio.sleep(max(0.0, self._last_sent_s + self._heartbeat_s - clock()))
            if clock() - self._last_sent_s >= self._heartbeat_s:
                await self._send(scope, send, dialect_of(scope).heartbeat)

    async def _send(self, scope: Scope, send: Send, body: bytes, *, more: bool = True) -> None:
        async with self._sending:  # no heartbeat within an event
            self._last_sent_s = asyncio.get_running_loop().time()
            if len(body) <= PIECE_BYTES:
                self._is_open = more
                await send({"type": "http.response.body", "body": body, "more_body": more})
            else:
                self._is_open = False  # until it ends, nothing else may follow
                pace = scope["state"]["body"].pace_of_answer()
                await send_paced(send, body, pace, more=more)
                self._is_open = more


async def _end(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
