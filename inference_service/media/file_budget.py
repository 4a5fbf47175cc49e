"""Bounds the bytes of fetched files in memory."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
import contextlib
import itertools
from typing import Final

from inference_service.errors import QueueFullError


_RETRY_AFTER_S: Final = 2.0


class FileBudget:
    """The bytes of all fetched files that are in memory. Belongs to one event loop.

    When there is no room, files stop being read until others are gone. Files are held until it is their request's turn
    to be decoded, and of a slow host until all are there. So half of the room is kept for the oldest request of each
    caller, and of the other half one caller has three quarters at most: nobody waits for the many requests of another
    one. The oldest request of all always goes on, so that requests with half of their files never wait for each other.

    Args:
        limit_bytes: Maximum of all requests but the oldest.
        wait_s: Maximum time that a file waits for room.
    """

    def __init__(self, limit_bytes: int, *, wait_s: float) -> None:
        self._limit_bytes = limit_bytes
        self._wait_s = wait_s
        self.used_bytes = 0
        self._of_caller: Counter[str] = Counter()  # bytes
        self._requests: dict[FetchedFiles, None] = {}  # by age
        self._freed = asyncio.Event()

    @contextlib.contextmanager
    def of_request(self, caller: str = "") -> Iterator[FetchedFiles]:
        """Counts the files of a request while the context is open; an empty caller is unknown, and may be many."""
        files = FetchedFiles(self, caller)
        try:
            yield files
        finally:
            self._forget(files)

    def has_room(self, files: FetchedFiles, num_bytes: int) -> bool:
        """Whether a request may hold more bytes now; with the first ones it takes its place in the order of age."""
        if files.closed:
            return True  # its work is being given up; nothing is counted
        self._requests.setdefault(files)
        if next(iter(self._requests)) is files:
            return True
        wanted, common = self.used_bytes + num_bytes, self._limit_bytes // 2
        if wanted > self._limit_bytes:
            return False
        older = itertools.takewhile(lambda other: other is not files, self._requests)
        if not files.caller or all(other.caller != files.caller for other in older):
            return True
        own = self._of_caller[files.caller] + num_bytes
        return wanted <= common and own <= common * 3 // 4

    def add(self, files: FetchedFiles, num_bytes: int) -> None:
        """Counts more bytes of a request."""
        self._count(files, num_bytes)

    def free(self, files: FetchedFiles, num_bytes: int) -> None:
        """Counts fewer bytes of a request."""
        self._count(files, -num_bytes)
        self._wake()

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
                "Images of other requests, yours among them, have filled the memory for fetched files for"
                f" {self._wait_s:g} s: {self._limit_bytes >> 20} MiB (--media-buffer-mib), half of it for the oldest"
                " request of each caller, and three quarters of the other half for one caller. Try again later.",
                field=field,
                retry_after_s=_RETRY_AFTER_S,
            ) from None

    def _count(self, files: FetchedFiles, num_bytes: int) -> None:
        if files.closed:
            return
        files.held_bytes += num_bytes
        self.used_bytes += num_bytes
        self._of_caller[files.caller] += num_bytes
        if not self._of_caller[files.caller]:
            del self._of_caller[files.caller]

    def _forget(self, files: FetchedFiles) -> None:
        self._count(files, -files.held_bytes)
        files.closed = True
        self._requests.pop(files, None)
        self._wake()

    def _wake(self) -> None:
        self._freed.set()
        self._freed = asyncio.Event()


class FetchedFiles:
    """The fetched files of one request.

    Attributes:
        caller: Whose it is.
        held_bytes: Their size so far.
        closed: The request does not hold files any more: what is still being read for it is not counted.
    """

    def __init__(self, budget: FileBudget, caller: str) -> None:
        self.caller = caller
        self.held_bytes = 0
        self.closed = False
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

    async def take(self, num_bytes: int, field: str) -> None:
        """Counts more bytes once there is room for them; see `wait_for_room`."""
        if not self.has_room(num_bytes):
            await self.wait_for_room(num_bytes, field)
        self.add(num_bytes)

    def free(self, num_bytes: int) -> None:
        """Counts fewer bytes: they are not in memory any more."""
        self._budget.free(self, num_bytes)
