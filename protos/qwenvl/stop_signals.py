"""SIGTERM and SIGINT for processes that stop together: which one insists, and which one is an echo of the first."""

from __future__ import annotations

from collections.abc import Callable
import time
from typing import Final


ECHO_S: Final = 0.5
"""Time after the first signal in which others are taken for the same one."""


class StopSignals:
    """Notes the signals that a process gets.

    One wish to stop arrives several times: `kill -- -GROUP`, systemd and a terminal signal every process of a group,
    and `make` and `qwenvl serve` pass on what they get. Only a later signal means "now".

    `arrived` may be called in a signal handler, also while it runs: it takes no lock. (A handler of Python that sets a
    `threading.Event` stops for ever if a second signal interrupts it.)

    Args:
        echo_s: Time after the first signal in which others are taken for the same one, in seconds.
        clock: Monotonic time in seconds.
    """

    def __init__(
        self, echo_s: float = ECHO_S, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._echo_s = echo_s
        self._clock = clock
        self._first: float | None = None
        self.insisted = False

    @property
    def stopping(self) -> bool:
        """Whether a signal has arrived."""
        return self._first is not None

    def arrived(self) -> None:
        """Notes a signal; sets `insisted` if it is no echo of the first one."""
        now = self._clock()
        if self._first is None:
            self._first = now
        elif now - self._first >= self._echo_s:
            self.insisted = True
