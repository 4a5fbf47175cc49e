"""HTTP/1.1 as h11 parses it, with bounds on heads, trailers and chunks.

h11 is chosen over httptools because it reads the body of a request that offers an upgrade, answers HTTP/1.0 clients
without chunks, and bounds trailers and the lines of chunks. It bounds neither the number of chunks nor that of headers.
"""

from __future__ import annotations

import re
from typing import Final

import h11


MAX_HEAD_BYTES: Final = 32 * 1024
"""Maximum size of a request line with its headers, of the line of a chunk, and of the trailers."""

MAX_HEADERS: Final = 128
"""Maximum number of headers, and of trailers: every one takes some 10 us until the application has seen it."""

MAX_EMPTY_LINES: Final = 16
"""Maximum number of empty lines before a request line."""

_HEAD_SLICE_BYTES: Final = 4 * 1024
_BODY_SLICE_BYTES: Final = 32 * 1024
# h11 spends some 20 us on a chunk, whatever its size: 43,000 chunks of one byte fit into one read of a socket.
_FREE_CHUNKS: Final = 256
_MIN_MEAN_CHUNK_BYTES: Final = 256
_END_OF_LINES: Final = re.compile(rb"\n\r?\n")


class BoundedConnection(h11.Connection):
    """Refuses bodies in many tiny chunks, and too many headers or trailers before they are parsed."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self._chunks = 0
        self._is_chunked = False
        self._body_bytes = 0
        self._content_length = ""
        self._empty_lines = 0
        self._sends_events = self.may_add_event = False

    def next_event(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        """Returns the next event, as h11 does.

        Raises:
            h11.RemoteProtocolError: The input is malformed or exceeds a bound; `error_status_hint` is the status.
        """
        if self.their_state is h11.IDLE:
            if self._skip_empty_lines() == b"\r":
                return h11.NEED_DATA
            self._count_lines()
        elif getattr(self._reader, "_reading_trailer", False):
            self._count_lines()
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._body_bytes = self._empty_lines = 0
            headers = dict(event.headers)
            self._is_chunked = b"transfer-encoding" in headers
            self._content_length = headers.get(b"content-length", b"").decode()
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._body_bytes += len(event.data)
            if self._chunks > _FREE_CHUNKS + self._body_bytes // _MIN_MEAN_CHUNK_BYTES:
                raise h11.RemoteProtocolError(
                    f"The chunks of the body are too small: {self._chunks} chunks have {self._body_bytes} bytes, but "
                    f"beyond {_FREE_CHUNKS} chunks the average must be {_MIN_MEAN_CHUNK_BYTES} bytes."
                )
        return event

    def send_with_data_passthrough(self, event: h11.Event) -> list[bytes] | None:
        """Encodes an event, as h11 does for `send`, and notes whether an event can follow what has been sent."""
        if isinstance(event, h11.Response):
            kind = dict(event.headers).get(b"content-type", b"")
            self._sends_events = self.may_add_event = kind.startswith(b"text/event-stream")
        elif isinstance(event, h11.Data) and event.data:
            # Large events are sent in pieces.
            self.may_add_event = self._sends_events and event.data.endswith(b"\n\n")
        return super().send_with_data_passthrough(event)

    @property
    def slice_bytes(self) -> int:
        """How much may be parsed at once, so that a bound is checked before more than this has passed it."""
        in_plain_body = self.their_state is h11.SEND_BODY and not self._is_chunked
        return _BODY_SLICE_BYTES if in_plain_body else _HEAD_SLICE_BYTES

    @property
    def waiting_bytes(self) -> int:
        """How much has been received, but not yet parsed."""
        return len(self._receive_buffer)

    def peek(self, count: int) -> bytes:
        """The first bytes that are not yet parsed. Does not copy the rest, as `trailing_data` does."""
        return bytes(memoryview(self._receive_buffer._data)[:count])  # noqa: SLF001 - `bytes` of it copies all

    def missing(self) -> str:
        """What is missing of the request if the input ends here; empty = nothing."""
        if self.their_state is h11.IDLE and self.waiting_bytes:
            return "The connection ended within the head of the request: no empty line follows its headers."
        if self.their_state is not h11.SEND_BODY:
            return ""
        wanted = "the last chunk is missing" if self._is_chunked else ""
        return (
            f"The connection ended within the body of the request, after {self._body_bytes} bytes: "
            f"{wanted or f'content-length is {self._content_length}'}."
        )

    def _skip_empty_lines(self) -> bytes:
        """Skips what some clients send after a body (RFC 9112, 2.2); returns the first two bytes behind it."""
        while (begin := self.peek(2)) == b"\r\n" or begin[:1] == b"\n":
            self._empty_lines += 1
            if self._empty_lines > MAX_EMPTY_LINES:
                raise h11.RemoteProtocolError(
                    f"The request line is preceded by more than {MAX_EMPTY_LINES} empty lines."
                )
            self._receive_buffer._extract(2 if begin == b"\r\n" else 1)  # noqa: SLF001
        return begin

    def _count_lines(self) -> None:
        begin = self.peek(MAX_HEAD_BYTES)
        end = _END_OF_LINES.search(begin)
        if begin.count(b"\n", 0, None if end is None else end.start()) > MAX_HEADERS:
            raise h11.RemoteProtocolError(
                f"The request has more than {MAX_HEADERS} headers or trailers.",
                error_status_hint=431,
            )
