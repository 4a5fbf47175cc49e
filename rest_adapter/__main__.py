"""The command `rest-adapter`: settings, logs, and the HTTP server.

Owns the process. Must not know routes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import logging
import os
import sys

import uvicorn

from rest_adapter.app import create_app
from rest_adapter.http_protocol import BoundedHttpProtocol
from rest_adapter.logs import JsonLines
from rest_adapter.settings import AdapterSettings


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT; streams that run then are finished first.

    Args:
        argv: Flags; None = those of the process.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="rest-adapter", description="OpenAI-compatible door of an inference-service."
    )
    AdapterSettings.add_flags(parser)
    settings = AdapterSettings.load(vars(parser.parse_args(argv)), os.environ)
    host, _, port = settings.http_address.rpartition(":")
    if not host or not port.isdecimal():
        parser.error(f"--http-address: {settings.http_address!r} is not HOST:PORT")
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    try:
        app = create_app(settings)
    except OSError as error:
        parser.error(f"--api-key-file: {error.strerror}")
    server = uvicorn.Server(
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
            timeout_graceful_shutdown=int(settings.request_timeout_s),
        )
    )
    server.run()
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
