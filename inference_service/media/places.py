"""Limits how many images are fetched at a time: in all, from one host, for one caller and for one request."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
import contextlib
from typing import Final


_PER_REQUEST: Final = 8
_Keys = tuple[tuple[str, str], ...]


class FetchPlaces:
    """Admits fetches; those of one request from one host in order, requests and hosts in turns.

    One host and one caller have at most half of the places, and one request a few, so that neither hosts that hang nor
    a caller who names them stop the fetches of the others. Belongs to one event loop.
    """

    def __init__(self, maximum: int) -> None:
        half = max(1, maximum // 2)
        self._limits = {"all": maximum, "host": half, "caller": half, "request": _PER_REQUEST}
        self._taken: Counter[tuple[str, str]] = Counter()
        self._waiting: dict[_Keys, deque[asyncio.Future[None]]] = {}

    @contextlib.asynccontextmanager
    async def taken(self, host: str, *, caller: str = "", request: str = "") -> AsyncIterator[None]:
        """Holds a place while the context is open; waits until there is one.

        Args:
            host: The host that is fetched from.
            caller: The caller; empty = unknown, without a limit.
            request: What tells the request from others; empty = unknown, without a limit.
        """
        owners = (("caller", caller), ("request", request))
        keys = (("all", ""), ("host", host), *(key for key in owners if key[1]))
        if self._fits(keys):
            self._taken.update(keys)
        else:
            await self._wait(keys)
        try:
            yield
        finally:
            self._leave(keys)

    async def _wait(self, keys: _Keys) -> None:
        admitted = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(keys, deque()).append(admitted)
        try:
            await admitted
        except asyncio.CancelledError:
            if not admitted.cancelled():
                self._leave(keys)  # admitted and cancelled in the same turn of the loop
            raise

    def _leave(self, keys: _Keys) -> None:
        self._taken.subtract(keys)
        for key in keys:
            if not self._taken[key]:
                del self._taken[key]
        for waiting in list(self._waiting):
            self._admit(waiting)

    def _admit(self, keys: _Keys) -> None:
        """Admits the first of a line that still waits, if there is a place for it; the line then goes to the end."""
        line = self._waiting[keys]
        while line and line[0].done():  # cancelled
            line.popleft()
        if line and self._fits(keys):
            self._taken.update(keys)
            line.popleft().set_result(None)
            del self._waiting[keys]
            self._waiting[keys] = line
        if not line:
            del self._waiting[keys]

    def _fits(self, keys: _Keys) -> bool:
        return all(self._taken[key] < self._limits[key[0]] for key in keys)
