"""The two processes of `qwenvl serve`, which start and stop together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
import ctypes
import http.client
import signal
import subprocess
import sys
import time
from types import FrameType

from inference_service.commands.console import Console
from inference_service.commands.ports import listeners
from qwenvl.addresses import Address
from qwenvl.environment import ENV_PREFIX
from qwenvl.flags import MAX_SECONDS
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


def _die_with_parent() -> None:
    """In the child, before exec: killing `qwenvl serve` leaves no orphan."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Pair:
    """The service and the adapter.

    Args:
        environment: The environment of both processes, with their settings.
        addresses: The addresses `http_address` and `grpc_address`, among others.
        drain_s: Time for running requests to finish, in seconds.
        console: For what happens to them.
        banner: What is said when both are ready.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        addresses: Mapping[str, Address],
        *,
        drain_s: float,
        console: Console,
        banner: Callable[[], Iterable[str]],
    ) -> None:
        self._environment = environment
        self._addresses = addresses
        self._drain_s = drain_s
        self._console = console
        self._banner = banner
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._signals = StopSignals(_SILENT_STOP_S)

    def run(self) -> int:
        """Runs until a signal arrives or one of the processes exits; returns the exit status."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        for module in (_SERVICE, _ADAPTER):
            self._children[module] = subprocess.Popen(
                child_command(module),
                env=self._environment_of(module),
                # Ctrl-C in a terminal must reach this process only, which then stops both in order.
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - no threads here
            )
        self._console.say("loading the model")
        announced = False
        while not self._signals.stopping:
            for name, child in self._children.items():
                if child.poll() is not None:
                    self._console.complain(f"{name} ended with status {child.returncode}")
                    self._stop()
                    return 1
            if not announced and self.is_ready() and not self._signals.stopping:
                announced = True
                self._console.say(*self._banner())
            time.sleep(_POLL_S if announced else _START_POLL_S)
        return self._stop()

    def _environment_of(self, module: str) -> Mapping[str, str]:
        """The adapter drains for longer, so that it passes on how the service ends a request that takes too long."""
        if module == _SERVICE:
            return self._environment
        drain_s = min(self._drain_s + _ADAPTER_LATER_S, MAX_SECONDS)
        return {**self._environment, ENV_PREFIX + "DRAIN_TIMEOUT_S": f"{drain_s:g}"}

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
        return ready and all(map(self._is_ours, self._children))

    def _is_ours(self, module: str) -> bool:
        owners = listeners(self._addresses[_ADDRESSES[module]].port)
        return not owners or self._children[module].pid in owners

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
        statuses = {child.returncode for child in self._children.values()}
        return max(statuses - {0, -signal.SIGTERM, -signal.SIGKILL}, default=0)

    def _terminate(self, *modules: str) -> None:
        for module in modules:
            self._children[module].terminate()

    def _running(self) -> list[subprocess.Popen[bytes]]:
        return [child for child in self._children.values() if child.poll() is None]
