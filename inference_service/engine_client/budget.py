"""How many bytes of pixels may be on their way to the engine, and the queue of requests that wait for room."""

from __future__ import annotations

import asyncio
from collections import deque

from inference_service.errors import ImageTooLargeError


class PixelBudget:
    """A first-in-first-out semaphore that counts bytes. Belongs to one event loop."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    def reserve(self, num_bytes: int) -> asyncio.Future[None]:
        """Asks for room. The future is done when the room is granted; until then cancelling it leaves the queue.

        Every reservation ends with one call of `give_back`. Nothing (0 bytes) is granted at once.

        Raises:
            ImageTooLargeError: It would never fit.
        """
        if num_bytes > self.limit_bytes:
            raise ImageTooLargeError(
                f"the images of one request may take {self.limit_bytes} bytes after processing,"
                f" these take {num_bytes}",
                metadata={"limit": str(self.limit_bytes), "value": str(num_bytes)},
            )
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if num_bytes == 0:
            granted.set_result(None)
        else:
            self._line.append((num_bytes, granted))
            self._grant()
        return granted

    def give_back(self, num_bytes: int, reservation: asyncio.Future[None]) -> None:
        """Ends a reservation, granted or not."""
        if reservation.cancel() or reservation.cancelled():
            self._grant()  # whoever stood behind it may fit
        else:
            self.used_bytes -= num_bytes
            self._grant()

    def _grant(self) -> None:
        while self._line:
            num_bytes, granted = self._line[0]
            if granted.cancelled():
                self._line.popleft()
            elif self.used_bytes + num_bytes <= self.limit_bytes:
                self._line.popleft()
                self.used_bytes += num_bytes
                granted.set_result(None)
            else:
                return
