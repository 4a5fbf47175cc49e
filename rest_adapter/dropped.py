"""Bodies that nobody is going to read: nothing of them is kept in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self


class Dropped(bytearray):
    """What uvicorn adds the pieces of such a body to; it stays empty.

    Attributes:
        num_bytes: The size of what was added.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __iadd__(self, piece: bytes | bytearray) -> Self:  # type: ignore[override, misc]  # of all that has a buffer
        self.num_bytes += len(piece)
        return self


def drop_body(state: Mapping[str, Any]) -> Dropped:
    """Drops what has been received of a request's body, and reads no more of it until somebody asks for it.

    One read of a socket returns up to 256,000 bytes, which many refused callers that wait must not have in memory.

    Args:
        state: The state of the request's scope, from which `BoundedHttpProtocol` does that.

    Returns:
        What counts the bytes that are dropped until a piece of the body has been received.
    """
    drop: Callable[[], Dropped] = state.get("drop_body", Dropped)
    return drop()
