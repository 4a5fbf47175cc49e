"""Limits the bytes of pixels in flight to the engine; requests over the limit wait in a queue."""

from __future__ import annotations

import asyncio
from collections import deque

from inference_service.errors import ImageTooLargeError


class PixelBudget:
    """A first-in-first-out semaphore that counts bytes. Belongs to one event loop."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    def reserve(self, num_bytes: int) -> asyncio.Future[None]:
        """Reserves bytes. The future is done when they are granted; cancelling it before that leaves the queue.

        Every reservation ends with one call of `give_back`. A reservation of 0 bytes is granted at once.

        Raises:
            ImageTooLargeError: `num_bytes` exceeds the whole budget.
        """
        if num_bytes > self.limit_bytes:
            raise ImageTooLargeError(
                f"The images of the request have {num_bytes} bytes after processing, but at most {self.limit_bytes}"
                " are allowed (--pixel-budget-mib); send fewer or smaller images.",
                metadata={"limit": str(self.limit_bytes), "value": str(num_bytes)},
            )
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if num_bytes == 0:
            granted.set_result(None)
        else:
            self._queue.append((num_bytes, granted))
            self._grant()
        return granted

    def give_back(self, num_bytes: int, reservation: asyncio.Future[None]) -> None:
        """Ends a reservation, granted or not."""
        if reservation.cancel() or reservation.cancelled():
            self._grant()  # the next one in the queue may fit
        else:
            self.used_bytes -= num_bytes
            self._grant()

    def shrink(self, num_bytes: int) -> None:
        """Gives back a part of a granted reservation."""
        self.used_bytes -= num_bytes
        self._grant()

    def _grant(self) -> None:
        while self._queue:
            num_bytes, granted = self._queue[0]
            if granted.cancelled():
                self._queue.popleft()
            elif self.used_bytes + num_bytes <= self.limit_bytes:
                self._queue.popleft()
                self.used_bytes += num_bytes
                granted.set_result(None)
            else:
                return
