"""Bounds the bytes of fetched files in memory."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
import contextlib
from typing import Final

from inference_service.errors import QueueFullError


_RETRY_AFTER_S: Final = 2.0


class FileBudget:
    """The bytes of all fetched files that are in memory. Belongs to one event loop.

    When there is no room, files stop being read until others are gone, except those of each caller's oldest request: it
    always goes on, so that neither requests with half of their files wait for each other, nor a caller for the requests
    of another one, which keep their files until it is their turn to be decoded. The other requests of one caller have
    at most half of the room, together with its oldest.

    Args:
        limit_bytes: Maximum of all requests but the oldest of each caller.
        wait_s: Maximum time that a file waits for room.
    """

    def __init__(self, limit_bytes: int, *, wait_s: float) -> None:
        self._limit_bytes = limit_bytes
        self._wait_s = wait_s
        self._used: Counter[str] = Counter()
        self._requests: dict[str, dict[FetchedFiles, None]] = {}  # of each caller, by age
        self._freed = asyncio.Event()

    @property
    def used_bytes(self) -> int:
        """Bytes of all callers."""
        return self._used.total()

    @contextlib.contextmanager
    def of_request(self, caller: str = "") -> Iterator[FetchedFiles]:
        """Counts the files of a request while the context is open; an empty caller is unknown, without a limit."""
        files = FetchedFiles(self, caller)
        try:
            yield files
        finally:
            self._forget(files)

    def has_room(self, files: FetchedFiles, num_bytes: int) -> bool:
        """Whether a request may hold more bytes now; with the first ones it takes its place in the order of age."""
        caller = files.caller
        requests = self._requests.setdefault(caller, {})
        requests.setdefault(files)
        if next(iter(requests)) is files:
            return True
        if caller and self._used[caller] + num_bytes > self._limit_bytes // 2:
            return False
        return self.used_bytes + num_bytes <= self._limit_bytes

    def add(self, files: FetchedFiles, num_bytes: int) -> None:
        """Counts more bytes of a request."""
        files.held_bytes += num_bytes
        self._used[files.caller] += num_bytes

    async def wait_for_room(self, files: FetchedFiles, num_bytes: int, field: str) -> None:
        """Returns when a request may hold more bytes.

        Raises:
            QueueFullError: There was no room in time.
        """
        try:
            async with asyncio.timeout(self._wait_s):
                while not self.has_room(files, num_bytes):
                    await self._freed.wait()
        except TimeoutError:
            raise QueueFullError(
                f"Images of other requests fill the memory for fetched files, {self._limit_bytes >> 20} MiB"
                " (--media-buffer-mib), or your half of it; try again later.",
                field=field,
                retry_after_s=_RETRY_AFTER_S,
            ) from None

    def _forget(self, files: FetchedFiles) -> None:
        caller = files.caller
        self._used[caller] -= files.held_bytes
        if not self._used[caller]:
            del self._used[caller]
        requests = self._requests.get(caller, {})
        requests.pop(files, None)
        if not requests:
            self._requests.pop(caller, None)
        self._freed.set()
        self._freed = asyncio.Event()


class FetchedFiles:
    """The fetched files of one request.

    Attributes:
        caller: Whose it is.
        held_bytes: Their size so far.
    """

    def __init__(self, budget: FileBudget, caller: str) -> None:
        self.caller = caller
        self.held_bytes = 0
        self._budget = budget

    def has_room(self, num_bytes: int) -> bool:
        """Whether there is room for more bytes now."""
        return self._budget.has_room(self, num_bytes)

    async def wait_for_room(self, num_bytes: int, field: str) -> None:
        """See FileBudget."""
        await self._budget.wait_for_room(self, num_bytes, field)

    def add(self, num_bytes: int) -> None:
        """Counts more bytes."""
        self._budget.add(self, num_bytes)
