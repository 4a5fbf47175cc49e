"""Watches clients that have ended their side of a connection: some wait for their answer, others are gone.

`nc` and some tools of HTTP/1.0 end their output behind a request, and read on. The end of the input does not tell them
from a client that has closed the connection: only when something is sent to that one, its system answers with a reset.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from socket import SO_ERROR, SOL_SOCKET
from typing import Final


PROBE_AFTER_S: Final = 0.5
"""Most answers to clients that wait have begun by then, and are the probe themselves."""

PROBE_EVERY_S: Final = 5.0
_POLL_S: Final = 0.1


class HalfClosed:
    """Closes the connection as soon as its client is known to be gone.

    Args:
        transport: The connection, whose input has ended.
        probe: Sends something that does not change the answer, if the protocol has that; called every few seconds.
    """

    def __init__(self, transport: asyncio.Transport, probe: Callable[[], None]) -> None:
        self._transport = transport
        self._probe = probe
        self._loop = asyncio.get_running_loop()
        self._next_probe = self._loop.time() + PROBE_AFTER_S
        self._timer = self._loop.call_later(PROBE_AFTER_S, self._poll)

    def stop(self) -> None:
        """Ends the watch."""
        self._timer.cancel()

    def _poll(self) -> None:
        if self._transport.is_closing():
            return
        if self._is_reset():
            self._transport.abort()
            return
        if self._loop.time() >= self._next_probe:
            self._next_probe = self._loop.time() + PROBE_EVERY_S
            self._probe()
        self._timer = self._loop.call_later(_POLL_S, self._poll)

    def _is_reset(self) -> bool:
        # Reading would tell nothing: behind the end of the input, there is always the end of the input.
        connection = self._transport.get_extra_info("socket")
        return bool(connection.getsockopt(SOL_SOCKET, SO_ERROR))
