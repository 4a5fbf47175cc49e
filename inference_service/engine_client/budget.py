"""Limits the bytes of pixels in flight to the engine; requests over the limit wait in a line."""

from __future__ import annotations

from typing import Final

from inference_service.errors import ImageTooLargeError
from inference_service.line import Line, Place


_SPARE_PART: Final = 8
"""The part of the budget that is left to callers who have nothing of it."""


class PixelBudget:
    """The bytes of pixels in flight, which callers share fairly; see `Line`. Belongs to one event loop.

    A request has its bytes until it ends, since the engine reads its pixels again after a preemption: so the caller
    with the fewest bytes comes first, not the one whose requests came first.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._line = Line(limit_bytes, spare=limit_bytes // _SPARE_PART)

    @property
    def used_bytes(self) -> int:
        """Bytes that are granted."""
        return self._line.held

    def reserve(self, num_bytes: int, caller: str = "") -> Place:
        """Reserves bytes for a caller; `Place.granted` waits for them, and `Place.leave` ends every reservation.

        A reservation of 0 bytes is granted at once.

        Raises:
            ImageTooLargeError: `num_bytes` exceeds the whole budget.
        """
        if num_bytes > self.limit_bytes:
            raise ImageTooLargeError(
                f"The images of the request have {num_bytes} bytes after processing, but at most {self.limit_bytes}"
                " are allowed (--pixel-budget-mib); send fewer or smaller images.",
                metadata={"limit": str(self.limit_bytes), "value": str(num_bytes)},
            )
        return self._line.ask(caller, num_bytes)
