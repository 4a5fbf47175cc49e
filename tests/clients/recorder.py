"""A proxy between the clients and the product that keeps every answer, so that all of them can be checked."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
from dataclasses import dataclass, field
import http.client
import http.server
import threading
from typing import Any
import urllib.parse


_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its answer."""

    method: str
    path: str
    status: int
    content_type: str
    body: str


@dataclass
class Recorder:
    """The proxy's address, and what has passed through it."""

    url: str
    exchanges: list[Exchange] = field(default_factory=list)


@contextlib.contextmanager
def recording(upstream: str) -> Iterator[Recorder]:
    """Runs the proxy in front of an address such as `http://127.0.0.1:8000`."""
    address = urllib.parse.urlsplit(upstream).netloc

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            length = int(self.headers.get("content-length", 0))
            body = self.rfile.read(length) if length else None
            connection = http.client.HTTPConnection(address, timeout=300)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
            # What is kept must be text.
            headers = {k: v for k, v in headers.items() if k.lower() != "accept-encoding"}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            kept = self._pass_on(answer)
            connection.close()
            path = urllib.parse.urlsplit(self.path).path
            kind = answer.headers.get("content-type", "")
            recorder.exchanges.append(
                Exchange(self.command, path, answer.status, kind, kept.decode())
            )

        def _pass_on(self, answer: http.client.HTTPResponse) -> bytes:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    self.send_header(name, value)
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            kept = b""
            while part := answer.read1(2**16):
                kept += part
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
            return kept

        do_GET = do_POST = do_DELETE = do_PUT = do_OPTIONS = handle_any  # noqa: N815

        def log_message(self, *arguments: Any) -> None:
            """Tests stay silent."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        recorder = Recorder(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield recorder
        finally:
            server.shutdown()
            thread.join()
