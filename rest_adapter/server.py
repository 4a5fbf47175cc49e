"""Runs the HTTP server of the adapter."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
import contextlib
from importlib.metadata import version
import logging
import signal
import sys

from fastapi import FastAPI
import uvicorn

from qwenvl.addresses import listen, parse_address, why_not
from qwenvl.certificates import CertificateError
from qwenvl.descriptors import raise_descriptor_limit
from qwenvl.observability import configure_logging, start_tracing, stop_tracing
from qwenvl.observability.metrics_server import MetricsServer
from qwenvl.stop_signals import StopSignals
from rest_adapter.app import create_app
from rest_adapter.connections import MAX_CONNECTIONS
from rest_adapter.http_protocol import BoundedHttpProtocol
from rest_adapter.metrics import REGISTRY
from rest_adapter.settings import AdapterSettings


logger = logging.getLogger(__name__)

KEEP_ALIVE_S = 75
"""Longer than the idle time of common client pools, so that the client closes first; a request could meet the close."""
_LAST_WORDS_S = 1.0
# How long a thread that works on a large body keeps the interpreter from the event loop, each time that the loop needs
# it. Python's default is ten times as long, and an answer needs it many times.
_SWITCH_INTERVAL_S = 0.0005
_MAX_DESCRIPTORS = 65536
_OTHER_DESCRIPTORS = 64


class _Server(uvicorn.Server):
    """Exits with status 0 after a signal; uvicorn's server would raise the signal again.

    Args:
        config: Of uvicorn.
        drain_s: Time for running requests to finish after the first signal, in seconds.
    """

    def __init__(self, config: uvicorn.Config, drain_s: float) -> None:
        super().__init__(config)
        self._drain_s = drain_s

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """The first signal lets requests finish; the second one, or the end of the time, ends each with an error."""
        loop = asyncio.get_running_loop()
        signals = StopSignals()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, signals)
        yield

    def _on_signal(self, signals: StopSignals) -> None:
        signals.arrived()
        if not self.should_exit:
            self.should_exit = True
            # uvicorn's own limit cancels requests without waiting for what they say last.
            asyncio.get_running_loop().call_later(self._drain_s, self._end_requests)
        if signals.insisted:
            self._end_requests()

    def _end_requests(self) -> None:
        for task in self.server_state.tasks:
            task.cancel()
        asyncio.get_running_loop().call_later(_LAST_WORDS_S, self._exit_at_once)

    def _exit_at_once(self) -> None:
        # It would log every request that it drops as an error of the application.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self.force_exit = True


def _open_metrics(settings: AdapterSettings) -> MetricsServer | None:
    """Serves the metrics at an address of their own, if there is one."""
    address = settings.http_metrics_address
    if address is None:
        return None
    try:
        return MetricsServer(REGISTRY, address)
    except OSError as error:
        problem = settings.problem("http_metrics_address", address, why_not(error))
        raise SystemExit(problem) from None


def serve(settings: AdapterSettings, warnings: Sequence[str] = ()) -> int:
    """Serves until SIGTERM or SIGINT; running requests have `drain_timeout_s` to finish.

    Args:
        settings: The adapter's settings.
        warnings: What to log first.

    Returns:
        The exit status.
    """
    configure_logging(
        process="rest-adapter", level=settings.log_level, log_format=settings.log_format
    )
    for warning in warnings:
        logger.warning(warning)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        app = create_app(settings)
    except CertificateError as error:
        raise SystemExit(str(error)) from None
    app.state.connections.maximum = min(
        MAX_CONNECTIONS, max(1, raise_descriptor_limit(_MAX_DESCRIPTORS) - _OTHER_DESCRIPTORS)
    )
    try:
        # With sockets of its own, `[::]` would leave out IPv4.
        sockets = listen(parse_address(settings.http_address))
    except OSError as error:
        problem = settings.problem("http_address", settings.http_address, why_not(error))
        raise SystemExit(problem) from None
    metrics_server = _open_metrics(settings)
    server = _Server(_config_of(app), settings.drain_timeout_s)
    logger.info("REST listens on %s", settings.http_address)
    start_tracing(
        settings.otlp_traces_endpoint, process="rest-adapter", version=version("qwen-vl-serving")
    )
    try:
        server.run(sockets)
    finally:
        stop_tracing()
    if metrics_server is not None:
        metrics_server.close()
    return 0 if server.started else 1


def _config_of(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=BoundedHttpProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
