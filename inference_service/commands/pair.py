"""The two processes of `qwenvl serve`, which serve and stop together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
import ctypes
import http.client
import signal
import subprocess
import sys
import time
from types import FrameType
from typing import Self

from inference_service.commands.console import Console
from inference_service.commands.ports import listeners
from qwenvl.addresses import Address
from qwenvl.environment import ENV_PREFIX
from qwenvl.flags import MAX_SECONDS
from qwenvl.launcher import Held
from qwenvl.stop_signals import StopSignals


_POLL_S = 0.2
_START_POLL_S = 0.05
_STOP_GRACE_S = 15.0
_SILENT_STOP_S = 1.0
_LAST_GRACE_S = 2.0
_ADAPTER_LATER_S = 5.0
_PROBE_TIMEOUT_S = 2.0
_PR_SET_PDEATHSIG = 1
_ADAPTER, _SERVICE = "rest_adapter", "inference_service"
_ADDRESSES = {_ADAPTER: "http_address", _SERVICE: "grpc_address"}


def child_command(module: str) -> list[str]:
    """The command line of a module of this distribution; `-P` keeps the working directory out of the path."""
    return [sys.executable, "-P", "-m", module]


def _start(module: str, environment: Mapping[str, str]) -> Held:
    command = child_command(module)
    try:
        return Held(command, environment, _die_with_parent)
    except OSError as error:
        raise SystemExit(f"cannot start a process ({command[0]}): {error.strerror}") from None


def _die_with_parent() -> None:
    """In the child, before exec: killing `qwenvl serve` leaves no orphan."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Pair:
    """The service and the adapter.

    Both are started early and held: they import, and the adapter checks its settings, which this program does not know.
    As a context manager this ends them, unless they were let go by `run`.

    Args:
        addresses: The addresses `http_address` and `grpc_address`, among others.
        drain_s: Time for running requests to finish, in seconds.
        console: For what happens to them.
    """

    def __init__(
        self, addresses: Mapping[str, Address], *, drain_s: float, console: Console
    ) -> None:
        self._addresses = addresses
        self._drain_s = drain_s
        self._console = console
        self._held: dict[str, Held] = {}
        self._signals = StopSignals(_SILENT_STOP_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for program in self._held.values():
            program.close()

    def start_adapter(self, environment: Mapping[str, str]) -> None:
        """Starts the adapter.

        Args:
            environment: Its environment, with its settings.

        Raises:
            SystemExit: It cannot be started.
        """
        # It drains for longer, so that it passes on how the service ends a request that takes too long.
        longer_s = min(self._drain_s + _ADAPTER_LATER_S, MAX_SECONDS)
        own = {ENV_PREFIX + "DRAIN_TIMEOUT_S": f"{longer_s:g}"}
        self._held[_ADAPTER] = _start(_ADAPTER, {**environment, **own})

    def start_service(self, environment: Mapping[str, str]) -> None:
        """Starts the service; arguments and errors as for the adapter."""
        self._held[_SERVICE] = _start(_SERVICE, environment)

    def check_adapter(self) -> None:
        """Waits until the adapter has checked its settings.

        Raises:
            SystemExit: They are wrong; the adapter has said why.
        """
        adapter = self._held[_ADAPTER]
        if not adapter.is_valid():
            status = adapter.process.wait()
            raise SystemExit(
                status if status > 0 else f"{_ADAPTER} ended with status {status} while it started"
            )

    def run(self, banner: Callable[[], Iterable[str]]) -> int:
        """Serves until a signal arrives or one of the processes exits; returns the exit status.

        Args:
            banner: What is said when both are ready.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        for program in self._held.values():
            program.release()
        self._console.say("loading the model")
        announced = False
        while not self._signals.stopping:
            for name, child in self._children().items():
                if child.poll() is not None:
                    self._console.complain(f"{name} ended with status {child.returncode}")
                    self._stop()
                    return 1
            if not announced and self.is_ready() and not self._signals.stopping:
                announced = True
                self._console.say(*banner())
            time.sleep(_POLL_S if announced else _START_POLL_S)
        return self._stop()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._signals.arrived()

    def is_ready(self) -> bool:
        """Whether both APIs are ready, and those of our own processes: another server may have taken a port."""
        address = self._addresses["http_address"].local()
        connection = http.client.HTTPConnection(
            address.host, address.port, timeout=_PROBE_TIMEOUT_S
        )
        try:
            connection.request("GET", "/ready")
            ready = connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):  # not listening yet, or not yet responding
            return False
        finally:
            connection.close()
        return ready and all(map(self._is_ours, self._held))

    def _is_ours(self, module: str) -> bool:
        owners = listeners(self._addresses[_ADDRESSES[module]].port)
        return not owners or self._held[module].process.pid in owners

    def _stop(self) -> int:
        """Stops both at once; the service refuses new requests, and answers those that the adapter waits for."""
        self._terminate(_ADAPTER, _SERVICE)
        begin, told, hurried = time.monotonic(), False, False
        end = begin + self._drain_s + _STOP_GRACE_S
        while self._running():
            now = time.monotonic()
            if self._signals.insisted and not hurried:
                # A second signal ends the streams of the service, which the adapter passes on.
                self._terminate(_SERVICE)
                hurried, end = True, min(end, now + _LAST_GRACE_S)
            if now >= end:
                for child in self._running():
                    child.kill()
            if not told and now - begin > _SILENT_STOP_S:
                told = True
                text = f"stopping: running requests have up to {self._drain_s:g} s; Ctrl-C again ends them"
                self._console.say(text)
            time.sleep(_POLL_S / 4)
        self._console.say("stopped")
        # A process that had not installed its handlers yet ends by the signal itself.
        statuses = {child.returncode for child in self._children().values()}
        return max(statuses - {0, -signal.SIGTERM, -signal.SIGKILL}, default=0)

    def _terminate(self, *modules: str) -> None:
        for module in modules:
            self._held[module].process.terminate()

    def _children(self) -> dict[str, subprocess.Popen[bytes]]:
        return {module: program.process for module, program in self._held.items()}

    def _running(self) -> list[subprocess.Popen[bytes]]:
        return [child for child in self._children().values() if child.poll() is None]
