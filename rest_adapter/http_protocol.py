"""uvicorn's HTTP/1.1 protocol with bounds on everything that is not a body.

h11 is chosen over httptools because it reads the body of a request that offers an upgrade, answers HTTP/1.0 clients
without chunks, and bounds trailers and the lines of chunks. uvicorn itself bounds neither the time of a head
(slowloris) nor the number of chunks.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any, Final

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol
from uvicorn.server import ServerState

from rest_adapter.errors import ApiError


HEAD_TIMEOUT_S = 30.0
MAX_HEAD_BYTES: Final = 32 * 1024
"""Maximum size of a request line with its headers, of the line of a chunk, and of the trailers."""

MAX_HEADERS: Final = 128
"""Maximum number of headers, and of trailers: every one takes some 10 us until the application has seen it."""

LINGER_S: Final = 1.0
"""Time after a refusal for the client to read it; closing at once would reset the connection."""

_MAX_LINGER_BYTES: Final = 2**20
_HEAD_SLICE_BYTES: Final = 4 * 1024
_BODY_SLICE_BYTES: Final = 32 * 1024
# h11 spends some 20 us on a chunk, whatever its size: 43,000 chunks of one byte fit into one read of a socket.
_FREE_CHUNKS: Final = 256
_MIN_MEAN_CHUNK_BYTES: Final = 256
_LOG: Final = logging.getLogger(__name__)


class _BoundedConnection(h11.Connection):
    """Refuses bodies in many tiny chunks, and too many headers or trailers before they are parsed."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self._chunks = 0
        self._is_chunked = False
        self._body_bytes = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        """Returns the next event, as h11 does.

        Raises:
            h11.RemoteProtocolError: The input is malformed or exceeds a bound; `error_status_hint` is the status.
        """
        if self.their_state is h11.IDLE:
            # Some clients send a line break after a body, which is to be ignored (RFC 9112, 2.2).
            begin = bytes(self._receive_buffer)[:2]
            if begin == b"\r":
                return h11.NEED_DATA
            if begin == b"\r\n":
                self._receive_buffer.maybe_extract_next_line()
            self._count_lines()
        elif getattr(self._reader, "_reading_trailer", False):
            self._count_lines()
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._body_bytes = 0
            self._is_chunked = any(name == b"transfer-encoding" for name, _ in event.headers)
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._body_bytes += len(event.data)
            if self._chunks > _FREE_CHUNKS + self._body_bytes // _MIN_MEAN_CHUNK_BYTES:
                raise h11.RemoteProtocolError(
                    f"The chunks of the body are too small: {self._chunks} chunks have {self._body_bytes} bytes, but "
                    f"beyond {_FREE_CHUNKS} chunks the average must be {_MIN_MEAN_CHUNK_BYTES} bytes."
                )
        return event

    @property
    def slice_bytes(self) -> int:
        """How much may be parsed at once, so that a bound is checked before more than this has passed it."""
        in_plain_body = self.their_state is h11.SEND_BODY and not self._is_chunked
        return _BODY_SLICE_BYTES if in_plain_body else _HEAD_SLICE_BYTES

    def _count_lines(self) -> None:
        lines, _, _ = bytes(self._receive_buffer).partition(b"\r\n\r\n")
        if lines.count(b"\n") > MAX_HEADERS:
            raise h11.RemoteProtocolError(
                f"The request has more than {MAX_HEADERS} headers or trailers.",
                error_status_hint=431,
            )


class BoundedHttpProtocol(H11Protocol):
    """Bounds the time and size of heads, chunk lines and trailers, and answers malformed requests in JSON."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn: _BoundedConnection = _BoundedConnection()
        self._head_timer: asyncio.TimerHandle | None = None
        self._lingering = False
        self._ignored_bytes = 0

    def connection_made(  # type: ignore[override]  # as in uvicorn: asyncio says BaseTransport
        self, transport: asyncio.Transport
    ) -> None:
        """Starts the timer for the first head."""
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timer."""
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parses the data in slices, so that the bounds do not depend on how much one read of the socket returns."""
        start = 0
        while start < len(data):
            if self._lingering:
                self._ignore(len(data) - start)
                return
            end = start + self.conn.slice_bytes
            super().data_received(data[start:end])
            start = end

    def handle_events(self) -> None:
        """Handles all complete events; starts the timer of a head that is not complete."""
        super().handle_events()
        if self.conn.their_state is not h11.IDLE:
            self._stop_head_timer()
        elif self._head_timer is None:
            is_idle = self.timeout_keep_alive_task is not None and not self.conn.trailing_data[0]
            if not is_idle:
                self._start_head_timer()

    def send_400_response(self, msg: str) -> None:
        """Refuses malformed input, while it is being handled as an exception."""
        reason = sys.exception()
        status, text = 400, msg
        if isinstance(reason, h11.RemoteProtocolError):
            status, text = reason.error_status_hint, str(reason)
        if text == "Receive buffer too long":
            text = f"The request line and headers have more than {MAX_HEAD_BYTES // 1024} KiB."
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._send_refusal(status, text)
        self._linger()

    def shutdown(self) -> None:
        """Closes the connection when the server stops, at once or after the current response."""
        if self._lingering:
            self.transport.close()
        else:
            super().shutdown()

    def _should_upgrade(self) -> bool:
        # No other protocol is served, and a server may ignore the offer (RFC 9110, 7.8).
        return False

    def _send_refusal(self, status: int, text: str) -> None:
        error = ApiError(status, text, reason="MALFORMED_REQUEST")
        _LOG.info({"message": "malformed request", "status": status, "reason": error.message})
        headers, body = self.config.app.state.dialects[0].render_error(error)  # type: ignore[union-attr]
        headers |= {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
        }
        response = h11.Response(
            status_code=status, headers=[*headers.items()], reason=STATUS_PHRASES[status]
        )
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")

    def _linger(self) -> None:
        """Ends the output, and closes the connection when the client does or after a short time."""
        self._lingering = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)

    def _ignore(self, count: int) -> None:
        self._ignored_bytes += count
        if self._ignored_bytes > _MAX_LINGER_BYTES:
            self.transport.close()

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
