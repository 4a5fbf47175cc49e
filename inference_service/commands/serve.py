"""`qwenvl serve [MODEL]`: run the inference service and the REST adapter on one machine.

They run as two child processes and receive their settings as `QWENVL_*` variables.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
import ctypes
import http.client
import os
from pathlib import Path
import signal
import subprocess
import sys
import time
from types import FrameType

from inference_service.commands.devices import find_device
from inference_service.commands.report import report
from inference_service.families.registry import load_spec
from inference_service.hub.resolve import ModelNotFound, fetch_model, is_hub_id, resolve_model
from inference_service.hub.snapshot import SnapshotError, verify_weights
from inference_service.model_spec import ModelSpec
from inference_service.settings import ServiceSettings
from qwenvl.flags import ENV_PREFIX


_DEFAULT_HTTP_ADDRESS = "127.0.0.1:8000"
_POLL_S = 0.2
_STOP_GRACE_S = 15.0
_PR_SET_PDEATHSIG = 1


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "serve",
        help="serve a model over gRPC and REST",
        description="Serve a model over gRPC and an OpenAI-compatible REST API. Settings of the REST adapter that have "
        "no flag here are read from QWENVL_* variables (see `rest-adapter --help`).",
    )
    parser.add_argument(
        "model", nargs="?", help="model directory or hub id (default: the embedded demo model)"
    )
    parser.add_argument(
        "--http-address",
        help=f"address (host:port) of the REST API (default: {_DEFAULT_HTTP_ADDRESS})",
    )
    ServiceSettings.add_flags(parser, skip={"model"})
    parser.set_defaults(run=run)


def run(flags: Mapping[str, object]) -> int:
    """Runs the command; returns the exit status."""
    explicit = {name: value for name, value in flags.items() if value is not None}
    settings = ServiceSettings.load(explicit, os.environ)
    environment = dict(os.environ) | {
        ENV_PREFIX + name.upper(): _as_text(value) for name, value in explicit.items()
    }
    http_address = environment.setdefault(ENV_PREFIX + "HTTP_ADDRESS", _DEFAULT_HTTP_ADDRESS)
    if not http_address.rpartition(":")[2].isdecimal():
        raise SystemExit(f"--http-address: {http_address!r} is not of the form HOST:PORT")
    try:
        directory = _directory(settings)
        verify_weights(directory)
        _print_report(load_spec(directory), settings)
    except (ModelNotFound, SnapshotError, ValueError, OSError) as error:
        raise SystemExit(f"cannot serve this model: {error}") from None
    environment.setdefault(ENV_PREFIX + "GRPC_TARGET", _dial_target(settings.grpc_address))
    return _Pair(environment, http_address, settings.drain_timeout_s).run()


def _directory(settings: ServiceSettings) -> Path:
    """The model's directory; a hub id that is not on this machine is fetched before either process starts."""
    model, hub, revision = settings.model, settings.hub, settings.revision
    try:
        return resolve_model(model, hub=hub, revision=revision).directory
    except ModelNotFound:
        if model is None or not is_hub_id(model):
            raise
        return fetch_model(model, hub=hub, revision=revision)


def _print_report(spec: ModelSpec, settings: ServiceSettings) -> None:
    """Prints the report of `qwenvl check`; only the engine measures what really fits."""
    device = find_device(settings.device, os.environ)
    if device is not None:
        print(*report(spec, device, settings).lines, sep="\n", file=sys.stderr, flush=True)


def _as_text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _dial_target(address: str) -> str:
    host, _, port = address.rpartition(":")
    return f"dns:///{'127.0.0.1' if host in ('', '0.0.0.0', '[::]') else host}:{port}"  # noqa: S104


def _die_with_parent() -> None:
    """In the child, before exec: killing `qwenvl serve` leaves no orphan."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class _Pair:
    """The two processes, which start and stop together."""

    def __init__(self, environment: Mapping[str, str], http_address: str, drain_s: float) -> None:
        self._environment = environment
        self._http_address = http_address
        self._drain_s = drain_s
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping = False

    def run(self) -> int:
        """Runs until a signal arrives or one of the processes exits; returns the exit status."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        for module in ("inference_service", "rest_adapter"):
            self._children[module] = subprocess.Popen(
                [sys.executable, "-m", module],
                env=self._environment,
                # Ctrl-C in a terminal must reach this process only, which then stops both in order.
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - no threads here
            )
        announced = False
        while not self._stopping:
            for name, child in self._children.items():
                if child.poll() is not None:
                    print(f"{name} exited with status {child.returncode}", file=sys.stderr)
                    self._stop()
                    return 1
            if not announced and self._is_ready():
                announced = True
                print(f"ready: http://{self._http_address}/v1", file=sys.stderr, flush=True)
            time.sleep(_POLL_S)
        return self._stop()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._stopping = True

    def _is_ready(self) -> bool:
        host, _, port = self._http_address.rpartition(":")
        connection = http.client.HTTPConnection(
            "127.0.0.1" if host in ("", "0.0.0.0") else host,  # noqa: S104
            int(port),
            timeout=2,
        )
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):  # not listening yet, or not yet responding
            return False
        finally:
            connection.close()

    def _stop(self) -> int:
        """Stops the REST adapter first, so that its streams finish while the service still answers."""
        status = 0
        for name in ("rest_adapter", "inference_service"):
            child = self._children[name]
            if child.poll() is None:
                child.terminate()
            try:
                status = child.wait(self._drain_s + _STOP_GRACE_S) or status
            except subprocess.TimeoutExpired:
                child.kill()
                status = child.wait() or status
        return status
