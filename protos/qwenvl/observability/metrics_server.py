"""Serves metrics to Prometheus over plain HTTP, at an address of their own.

Needs prometheus-client, which the extras `[adapter]` and `[inference]` install; no other module of this package imports
this one. It runs in threads of its own: a scrape waits for no event loop, and a slow client delays no request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
import contextlib
import logging
import socket
import socketserver
import sys
import threading
import time
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from qwenvl.addresses import listen, parse_address


PATH: Final = "/metrics"
_MAX_CONNECTIONS: Final = 16
_MAX_CONNECTION_S: Final = 10.0
_HEAD_S: Final = 0.1
"""More than a scraper takes to ask: an older connection without a request gives way to a new one."""
_SCRAPE_S: Final = 1.0
"""More than a scrape takes: any older connection gives way to a new one."""
_ACCEPT_S: Final = 0.02
"""Pause after each connection: whoever connects again and again would take the interpreter from the event loop."""
_POLL_S: Final = 0.5
_PAUSES: Final = 10
"""After a rendering the next one waits so many times as long as it has computed, as it keeps the interpreter."""
_MAX_PAUSE_S: Final = 1.0

logger = logging.getLogger(__name__)


class Exposition:
    """The metrics of a registry as text, for any number of scrapers in any threads.

    However many there are, rendering takes a tenth of a processor: all who asked before it began share one.

    Args:
        registry: What is rendered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._last: dict[
            str, tuple[float, bytes]
        ] = {}  # by content type: when it began, and the text
        self._next_s = 0.0

    def render(self, accept: str, asked_s: float) -> tuple[bytes, str]:
        """The metrics as they are or later, and their content type: OpenMetrics if the scraper accepts it.

        Otherwise it is the text format of Prometheus.

        Args:
            accept: The header of the request.
            asked_s: When it came, as `time.monotonic()`.
        """
        kind: str = CONTENT_TYPE_PLAIN_0_0_4
        generate: Callable[[CollectorRegistry], bytes] = generate_latest
        if "application/openmetrics-text" in accept:
            kind, generate = openmetrics.CONTENT_TYPE_LATEST, openmetrics.generate_latest
        with self._lock:
            begin_s, body = self._last.get(kind, (-1.0, b""))
            if begin_s < asked_s:
                time.sleep(max(0.0, self._next_s - time.monotonic()))
                begin_s, begin_cpu_s = time.monotonic(), time.thread_time()
                body = generate(self._registry)
                pause_s = min(_PAUSES * (time.thread_time() - begin_cpu_s), _MAX_PAUSE_S)
                self._next_s = time.monotonic() + pause_s
                self._last[kind] = begin_s, body
        return body, kind


class MetricsServer:
    """Serves `GET /metrics`.

    Args:
        registry: What is served.
        address: HOST:PORT.

    Raises:
        OSError: It cannot be listened on.
    """

    def __init__(self, registry: CollectorRegistry, address: str) -> None:
        application = _application(Exposition(registry))
        self._servers = [_Server(one, application) for one in listen(parse_address(address))]
        self.port: int = self._servers[0].server_port
        for server in self._servers:
            threading.Thread(
                target=server.serve_forever, args=(_POLL_S,), name="metrics", daemon=True
            ).start()
        logger.info("metrics listens on %s", address)

    def close(self) -> None:
        """Stops listening; waits for the poll of the server, at most half a second."""
        for server in self._servers:
            server.shutdown()
            server.server_close()


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """A bounded number of connections for a bounded time; a further one replaces the oldest, or is closed at once.

    Those over which no request has come are replaced first, and soon.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, listening: socket.socket, application: Callable[..., Any]) -> None:
        super().__init__(listening.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.server_name, self.server_port = "", listening.getsockname()[1]
        self.setup_environ()
        self.set_app(application)
        self._silent: dict[socket.socket, float] = {}  # in order of their beginnings
        self._asking: dict[socket.socket, float] = {}
        self._lock = threading.Lock()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether there is room for one more connection."""
        del client_address
        time.sleep(_ACCEPT_S)
        with self._lock:
            if len(self._silent) + len(self._asking) >= _MAX_CONNECTIONS and not (
                self._replaced(self._silent, _HEAD_S) or self._replaced(self._asking, _SCRAPE_S)
            ):
                return False
            self._silent[request] = time.monotonic()
        return True

    def _replaced(self, connections: dict[socket.socket, float], min_age_s: float) -> bool:
        """Closes the oldest of some connections, if it is so old."""
        oldest, begin_s = next(iter(connections.items()), (None, 0.0))
        if oldest is None or time.monotonic() - begin_s < min_age_s:
            return False
        del connections[oldest]
        with contextlib.suppress(OSError):  # its thread closes it
            oldest.shutdown(socket.SHUT_RDWR)
        return True

    def asks(self, request: Any) -> None:
        """Notes that the head of a request is complete."""
        with self._lock:
            if (begin_s := self._silent.pop(request, None)) is not None:
                self._asking[request] = begin_s

    def shutdown_request(self, request: Any) -> None:
        """Closes a connection."""
        with self._lock:
            self._silent.pop(request, None)
            self._asking.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Ends connections that are too old; called at every poll."""
        oldest = time.monotonic() - _MAX_CONNECTION_S
        with self._lock:
            connections = (*self._silent.items(), *self._asking.items())
        for request, begin_s in connections:
            if begin_s < oldest:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs why a scrape failed: a client that disconnects is no error of this process."""
        del request, client_address
        logger.debug("a scrape failed", exc_info=sys.exception())


class _Handler(WSGIRequestHandler):
    timeout = 5.0  # seconds of silence

    def parse_request(self) -> bool:
        """Parses the head, and tells the server when it is complete."""
        is_valid = super().parse_request()
        if is_valid and isinstance(self.server, _Server):
            self.server.asks(self.request)
        return is_valid

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Logs no scrapes."""


def _application(metrics: Exposition) -> Callable[..., Any]:
    """The WSGI application."""

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        status, headers = "200 OK", []
        body, content_type = b"Served is GET /metrics.\n", "text/plain"
        if environ["PATH_INFO"] != PATH:
            status = "404 Not Found"
        elif environ["REQUEST_METHOD"] != "GET":
            status, headers = "405 Method Not Allowed", [("Allow", "GET")]
        else:
            body, content_type = metrics.render(environ.get("HTTP_ACCEPT", ""), time.monotonic())
        headers += [("Content-Type", content_type), ("Content-Length", str(len(body)))]
        start_response(status, headers)
        return [body]

    return serve
