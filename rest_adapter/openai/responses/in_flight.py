"""The streamed responses that are being generated, so that they can be looked at, cancelled and deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
import contextlib
from typing import Any, Final

from rest_adapter.openai.responses.writer import ResponseWriter


_END_TIMEOUT_S: Final = 5.0


class Run:
    """The generation of one response.

    Attributes:
        caller: Who made the request.
        is_cancelled: Whether it was cancelled.
        is_deleted: Whether it was deleted: its client gets the rest of it, but nobody else finds it, then or later.

    Args:
        caller: Who made the request.
        writer: Writes the response.
        stop: Stops the generation.
    """

    def __init__(self, caller: str, writer: ResponseWriter, stop: Callable[[], None]) -> None:
        self.caller = caller
        self.is_cancelled = self.is_deleted = False
        self._writer = writer
        self._stop = stop
        self._left = asyncio.Event()
        self._keeping = asyncio.Lock()

    @property
    def resource(self) -> dict[str, Any]:
        """The response as it is now."""
        return self._writer.resource

    @property
    def num_bytes(self) -> int:
        """About how many bytes it has."""
        return self._writer.num_bytes

    async def cancel(self) -> None:
        """Stops the generation, and waits for its end, but not long: its client may not read the last events."""
        self.is_cancelled = True
        self._stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_TIMEOUT_S):
                await self._left.wait()

    async def keep(self, keep: Callable[[], Awaitable[None]]) -> None:
        """Keeps the response with a function, unless it was deleted."""
        async with self._keeping:
            if not self.is_deleted:
                await keep()

    async def delete(self) -> None:
        """Keeps it from being kept; when this returns it is in the store, if it was being kept just now, or never."""
        async with self._keeping:
            self.is_deleted = True

    def leave(self) -> None:
        """Says that it has ended."""
        self._left.set()


class InFlight:
    """All runs, by caller and id."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, str], Run] = {}

    def enter(self, run: Run) -> None:
        """Adds a run."""
        self._runs[run.caller, run.resource["id"]] = run

    def leave(self, run: Run) -> None:
        """Removes a run, if it is there."""
        self._runs.pop((run.caller, run.resource["id"]), None)
        run.leave()

    def find(self, caller: str, response_id: str) -> Run | None:
        """The run of a caller; None = it has ended or was deleted, or there was none."""
        run = self._runs.get((caller, response_id))
        return None if run is None or run.is_deleted else run
