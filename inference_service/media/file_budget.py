"""Bounds the bytes of fetched files in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
import contextlib
from typing import Final

from inference_service.errors import QueueFullError


_RETRY_AFTER_S: Final = 2.0


class FileBudget:
    """The bytes of all fetched files that are in memory. Belongs to one event loop.

    When there is no room, files stop being read until others are gone, except those of the oldest request: it always
    goes on, so that requests with half of their files never wait for each other.

    Args:
        limit_bytes: Maximum of all requests but the oldest.
        wait_s: Maximum time that a file waits for room.
    """

    def __init__(self, limit_bytes: int, *, wait_s: float) -> None:
        self.used_bytes = 0
        self._limit_bytes = limit_bytes
        self._wait_s = wait_s
        self._requests: dict[FetchedFiles, None] = {}
        self._freed = asyncio.Event()

    @contextlib.contextmanager
    def of_request(self) -> Iterator[FetchedFiles]:
        """Counts the files of a request while the context is open."""
        files = FetchedFiles(self)
        try:
            yield files
        finally:
            self.used_bytes -= files.held_bytes
            self._requests.pop(files, None)
            self._freed.set()
            self._freed = asyncio.Event()

    def has_room(self, files: FetchedFiles, num_bytes: int) -> bool:
        """Whether a request may hold more bytes now; with the first ones it takes its place in the order of age."""
        self._requests.setdefault(files)
        oldest = next(iter(self._requests)) is files
        return oldest or self.used_bytes + num_bytes <= self._limit_bytes

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
                " (--media-buffer-mib); try again later.",
                field=field,
                retry_after_s=_RETRY_AFTER_S,
            ) from None


class FetchedFiles:
    """The fetched files of one request.

    Attributes:
        held_bytes: Their size so far.
    """

    def __init__(self, budget: FileBudget) -> None:
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
        self.held_bytes += num_bytes
        self._budget.used_bytes += num_bytes
