"""uvicorn's HTTP/1.1 protocol with bounds on everything that is not a body.

uvicorn itself does not bound the time of a head (slowloris); it handles all that one read of a socket returns at once,
and waits for ever for clients that do not read. What is parsed is bounded in `bounded_connection`.
"""

from __future__ import annotations

import asyncio
from functools import partial
import logging
import re
from socket import AF_INET, AF_INET6, IPPROTO_TCP, TCP_NOTSENT_LOWAT
import sys
from typing import Any, Final

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from qwenvl.observability.context import CallContext
from rest_adapter.bounded_connection import MAX_HEAD_BYTES, BoundedConnection
from rest_adapter.connections import Connections
from rest_adapter.dropped import Dropped
from rest_adapter.errors import ApiError
from rest_adapter.half_closed import HalfClosed
from rest_adapter.turns import Turns


HEAD_TIMEOUT_S = 30.0
LINGER_S: Final = 1.0
"""Time after a refusal for the client to read it; closing at once would reset the connection."""

WRITE_TIMEOUT_S: Final = 60.0
"""Maximum time for a client to take what asyncio buffers of the responses, some 64 KiB."""

_UNSENT_BYTES: Final = 128 * 1024
"""Maximum that the system buffers of a response besides what is under way.

It would be up to 4 MiB, of which a client has to read a third before the next byte is taken: slow ones need minutes.
"""

_MAX_LINGER_BYTES: Final = 2**20
_MAX_PIPELINED_BYTES: Final = 64 * 1024
_BYTEARRAY: Final = re.compile(r"""bytearray\(b(['"].*?['"])\)""", re.DOTALL)
_TLS: Final = b"\x16\x03"  # a handshake (RFC 8446, 5.1)
_LOG: Final = logging.getLogger(__name__)


class _Flow(FlowControl):
    """Reads from the socket only while neither uvicorn nor a backlog forbids it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._is_behind = False
        self._is_held = False

    def pause_reading(self) -> None:
        self._is_held = True
        super().pause_reading()

    def resume_reading(self) -> None:
        self._is_held = False
        if not self._is_behind:
            super().resume_reading()

    def set_behind(self, value: bool) -> None:
        """Says whether something that has been read waits to be parsed."""
        self._is_behind = value
        if value:
            super().pause_reading()
        elif not self._is_held:
            super().resume_reading()


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
        self.conn: BoundedConnection = BoundedConnection()
        self.flow: _Flow
        self._turns: Turns = config.app.state.turns  # type: ignore[union-attr]
        self._connections: Connections = config.app.state.connections  # type: ignore[union-attr]
        self._backlog = bytearray()
        self._waits = False
        self._completing = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._lingering = False
        self._ignored_bytes = 0
        self._ended = False
        self._half_closed: HalfClosed | None = None

    def connection_made(  # type: ignore[override]  # as in uvicorn: asyncio says BaseTransport
        self, transport: asyncio.Transport
    ) -> None:
        """Starts the timer for the first head."""
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family in (AF_INET, AF_INET6):
            connection.setsockopt(IPPROTO_TCP, TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        self.flow = _Flow(transport)
        self._start_head_timer()
        if not self._connections.add(self, transport.abort):
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timers."""
        self._connections.remove(self)
        self._stop_head_timer()
        self._stop_write_timer()
        if self._half_closed is not None:
            self._half_closed.stop()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]  # as asyncio; uvicorn always closes
        """Answers requests that have been received before the client ended its side of the connection."""
        self._ended = True
        return self._waits or self._stays_open()

    def data_received(self, data: bytes) -> None:
        """Parses the data: at once if they are few, else in slices and in turn with other connections.

        The bounds therefore do not depend on how much one read of the socket returns.
        """
        if self._lingering:
            self._ignore(len(data))
        elif not self._waits and len(data) <= self.conn.slice_bytes and self._turns.may_go_first():
            super().data_received(data)
        else:
            self._backlog += data
            self.flow.set_behind(True)
            self._wait()

    def handle_events(self) -> None:
        """Handles all complete events; starts the timer of a head that is not complete."""
        if self._completing:
            # A pipelined request, which is parsed in turn.
            if self.conn.waiting_bytes:
                self._wait()
            return
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._connections.set_busy(self)
            self.scope["state"]["set_caller"] = partial(self._connections.set_caller, self)
            self.scope["state"]["drop_body"] = partial(self._drop_body, self.cycle)
        if self.conn.their_state is h11.DONE and self.conn.waiting_bytes < _MAX_PIPELINED_BYTES:
            # uvicorn stops reading when bytes follow a request, and would not see that the client leaves.
            self.flow.resume_reading()
        if self.conn.their_state is not h11.IDLE:
            self._stop_head_timer()
        elif self._head_timer is None:
            is_idle = self.timeout_keep_alive_task is not None and not self.conn.waiting_bytes
            if not is_idle:
                self._start_head_timer()

    def on_response_complete(self) -> None:
        """Goes on with the next request, if it is already there, in turn with other connections."""
        self._completing = True
        try:
            super().on_response_complete()
        finally:
            self._completing = False
        self._connections.set_idle(self)
        if self._ended and not self._waits:
            self.transport.close()
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._start_write_timer()

    def timeout_keep_alive_handler(self) -> None:
        """Closes an idle connection."""
        super().timeout_keep_alive_handler()
        self._start_write_timer()

    def pause_writing(self) -> None:
        """Starts the timer of a client that does not read."""
        super().pause_writing()
        self._start_write_timer()

    def resume_writing(self) -> None:
        """Stops the timer."""
        super().resume_writing()
        self._stop_write_timer()

    def send_400_response(self, msg: str) -> None:
        """Refuses malformed input, while it is being handled as an exception."""
        reason = sys.exception()
        status, text = 400, msg
        if isinstance(reason, h11.RemoteProtocolError):
            status, text = reason.error_status_hint, _BYTEARRAY.sub(r"\1", str(reason))
        if text == "Receive buffer too long":
            text = f"The request line and headers have more than {MAX_HEAD_BYTES // 1024} KiB."
        elif self.conn.peek(2) == _TLS:
            text = "The connection begins with TLS, but plain HTTP is served here: use http://, not https://."
        self._refuse(status, text)

    def _refuse(self, status: int, text: str) -> None:
        """Answers malformed input, if there is no answer yet, and reads no more."""
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
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._start_write_timer()

    def _should_upgrade(self) -> bool:
        # No other protocol is served, and a server may ignore the offer (RFC 9110, 7.8).
        return False

    def _send_refusal(self, status: int, text: str) -> None:
        error = ApiError(status, text, reason="MALFORMED_REQUEST")
        error.request_id = CallContext.from_headers({}).request_id  # its own may be unread
        _LOG.info(
            {
                "message": "malformed request",
                "request_id": error.request_id,
                "status": status,
                "reason": error.message,
            }
        )
        headers, body = self.config.app.state.dialects[0].render_error(error)  # type: ignore[union-attr]
        headers |= {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            "x-request-id": error.request_id,
        }
        response = h11.Response(
            status_code=status, headers=[*headers.items()], reason=STATUS_PHRASES[status]
        )
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")

    def _linger(self) -> None:
        """Ends the output, and closes the connection when the client does or after a short time."""
        self._lingering = True
        self._backlog.clear()
        self.flow.set_behind(False)
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.abort)

    def _ignore(self, count: int) -> None:
        self._ignored_bytes += count
        if self._ignored_bytes > _MAX_LINGER_BYTES:
            self.transport.close()

    def _stays_open(self) -> bool:
        """Whether the connection, whose input has ended and been parsed, has an answer to send."""
        if self._lingering:
            return False
        if missing := self.conn.missing():
            self._refuse(400, missing)
            return False
        if self.cycle is None or self.cycle.response_complete:
            return False
        if self._half_closed is None:
            self._half_closed = HalfClosed(self.transport, self._probe)
        return True

    def _probe(self) -> None:
        """Sends what clients ignore: an interim response (RFC 9110, 15.2; RFC 2518, 10.1), or a comment among events.

        A client of HTTP/1.0 that waits for a response must not be sent anything.
        """
        probe: h11.Event
        if self.conn.our_state is h11.SEND_RESPONSE and self.scope["http_version"] == "1.1":
            probe = h11.InformationalResponse(status_code=102, headers=[], reason=b"Processing")
        elif self.conn.our_state is h11.SEND_BODY and self.conn.may_add_event:
            probe = h11.Data(data=b":\n\n")
        else:
            return
        self.transport.write(self.conn.send(probe) or b"")

    def _drop_body(self, cycle: RequestResponseCycle) -> Dropped:
        cycle.body = dropped = Dropped()
        if cycle.more_body:
            self.flow.pause_reading()  # until `receive`, or the end of the response
        return dropped

    def _wait(self) -> None:
        if not self._waits:
            self._waits = True
            self._turns.wait(self._parse_slice, self._connections.caller_of(self))

    def _parse_slice(self) -> bool:
        """Parses the next slice; returns whether that has begun a request."""
        self._waits = False
        if self._lingering or self.transport.is_closing():
            self._backlog.clear()
            return False
        cycle = self.cycle
        if self._backlog:
            size = self.conn.slice_bytes
            data = bytes(self._backlog[:size])
            del self._backlog[:size]
            super().data_received(data)
        else:
            self.handle_events()
        if self._backlog:
            self._wait()
        elif not self._lingering:
            self.flow.set_behind(False)
        if self._ended and not (self._waits or self._stays_open()):
            self.transport.close()
        return self.cycle is not cycle

    def _start_write_timer(self) -> None:
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(WRITE_TIMEOUT_S, self.transport.abort)

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
