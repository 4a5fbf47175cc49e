"""The command `rest-adapter`: settings, logs, and the HTTP server."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Generator, Sequence
import contextlib
import os
import signal
import sys

import uvicorn

from qwenvl.observability import configure_logging
from rest_adapter.app import create_app
from rest_adapter.http_protocol import BoundedHttpProtocol
from rest_adapter.settings import AdapterSettings


# Longer than the idle time of common client pools, so that the client closes first.
_KEEP_ALIVE_S = 75
_LAST_WORDS_S = 1.0


class _Server(uvicorn.Server):
    """Exits with status 0 after a signal; uvicorn's server would raise the signal again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """The first signal lets running requests finish; the second one ends them, each with an error."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        yield

    def _on_signal(self) -> None:
        if not self.should_exit:
            self.should_exit = True
            return
        for task in self.server_state.tasks:
            task.cancel()
        asyncio.get_running_loop().call_later(_LAST_WORDS_S, self._exit_at_once)

    def _exit_at_once(self) -> None:
        self.force_exit = True


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT; running streams are finished first.

    Args:
        argv: Flags; None = those of the process.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="rest-adapter", description="OpenAI-compatible REST API of an inference-service."
    )
    AdapterSettings.add_flags(parser)
    settings = AdapterSettings.load(vars(parser.parse_args(argv)), os.environ)
    host, _, port = settings.http_address.rpartition(":")
    if not host or not port.isdecimal():
        parser.error(f"--http-address: {settings.http_address!r} is not of the form HOST:PORT")
    configure_logging(
        process="rest-adapter", level=settings.log_level, log_format=settings.log_format
    )
    try:
        app = create_app(settings)
    except OSError as error:
        parser.error(f"--api-key-file: {error.strerror}")
    server = _Server(
        uvicorn.Config(
            app,
            host=host.strip("[]"),
            port=int(port),
            loop="uvloop",
            http=BoundedHttpProtocol,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(settings.request_timeout_s),
        )
    )
    server.run()
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
