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
_MAX_CONNECTIONS: Final = 8
_MAX_CONNECTION_S: Final = 10.0
_SCRAPE_S: Final = 1.0
"""More than a scrape takes: an older connection gives way to a new one."""
_POLL_S: Final = 0.5

logger = logging.getLogger(__name__)


def render(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The metrics, and their content type: OpenMetrics if the scraper accepts it, else the text format of Prometheus.

    Args:
        registry: What is rendered.
        accept: The header of the request.
    """
    if "application/openmetrics-text" in accept:
        return openmetrics.generate_latest(registry), openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4


class MetricsServer:
    """Serves `GET /metrics`.

    Args:
        registry: What is served.
        address: HOST:PORT.

    Raises:
        OSError: It cannot be listened on.
    """

    def __init__(self, registry: CollectorRegistry, address: str) -> None:
        application = _application(registry)
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
    """A bounded number of connections for a bounded time; a further one replaces the oldest, or is closed at once."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listening: socket.socket, application: Callable[..., Any]) -> None:
        super().__init__(listening.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.server_name, self.server_port = "", listening.getsockname()[1]
        self.setup_environ()
        self.set_app(application)
        self._open: dict[socket.socket, float] = {}
        self._lock = threading.Lock()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether there is room for one more connection."""
        del client_address
        now_s = time.monotonic()
        with self._lock:
            if len(self._open) >= _MAX_CONNECTIONS:
                oldest, begin_s = next(iter(self._open.items()))
                if now_s - begin_s < _SCRAPE_S:
                    return False
                del self._open[oldest]
                with contextlib.suppress(OSError):  # its thread closes it
                    oldest.shutdown(socket.SHUT_RDWR)
            self._open[request] = now_s
        return True

    def shutdown_request(self, request: Any) -> None:
        """Closes a connection."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Ends connections that are too old; called at every poll."""
        oldest = time.monotonic() - _MAX_CONNECTION_S
        with self._lock:
            late = [request for request, begin_s in self._open.items() if begin_s < oldest]
        for request in late:
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs why a scrape failed: a client that disconnects is no error of this process."""
        del request, client_address
        logger.debug("a scrape failed", exc_info=sys.exception())


class _Handler(WSGIRequestHandler):
    timeout = 5.0  # seconds of silence

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Logs no scrapes."""


def _application(registry: CollectorRegistry) -> Callable[..., Any]:
    """The WSGI application."""

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        status, headers = "200 OK", []
        body, content_type = b"Served is GET /metrics.\n", "text/plain"
        if environ["PATH_INFO"] != PATH:
            status = "404 Not Found"
        elif environ["REQUEST_METHOD"] != "GET":
            status, headers = "405 Method Not Allowed", [("Allow", "GET")]
        else:
            body, content_type = render(registry, environ.get("HTTP_ACCEPT", ""))
        headers += [("Content-Type", content_type), ("Content-Length", str(len(body)))]
        start_response(status, headers)
        return [body]

    return serve
