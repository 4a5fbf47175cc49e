"""Limits how many images are fetched at a time: in all, from one host, for one caller and for one request."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
import contextlib
from typing import Final


_PER_REQUEST: Final = 8
_Key = tuple[str, str]
_Line = deque[asyncio.Future[None]]


class FetchPlaces:
    """Admits fetches; those of one request from one host in order, requests and hosts in turns.

    One host and one caller have at most half of the places, and one request a few, so that neither hosts that hang nor
    a caller who names them stop the fetches of the others. Belongs to one event loop.
    """

    def __init__(self, maximum: int) -> None:
        half = max(1, maximum // 2)
        self._limits = {"all": maximum, "host": half, "caller": half, "request": _PER_REQUEST}
        self._taken: Counter[_Key] = Counter()
        # Of each owner, the lines for hosts: whoever leaves looks at all owners, and at the hosts of those only who may
        # have a place. A request may wait for as many hosts as it has images.
        self._waiting: dict[tuple[_Key, ...], dict[str, _Line]] = {}

    @contextlib.asynccontextmanager
    async def taken(self, host: str, *, caller: str = "", request: str = "") -> AsyncIterator[None]:
        """Holds a place while the context is open; waits until there is one.

        Args:
            host: The host that is fetched from.
            caller: The caller; empty = unknown, without a limit.
            request: What tells the request from others; empty = unknown, without a limit.
        """
        owner = tuple(key for key in (("caller", caller), ("request", request)) if key[1])
        if self._fit(("all", ""), *owner, ("host", host)):
            self._take(owner, host)
        else:
            await self._wait(owner, host)
        try:
            yield
        finally:
            self._leave(owner, host)

    async def _wait(self, owner: tuple[_Key, ...], host: str) -> None:
        admitted = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, {}).setdefault(host, deque()).append(admitted)
        try:
            await admitted
        except asyncio.CancelledError:
            if not admitted.cancelled():
                self._leave(owner, host)  # admitted and cancelled in the same turn of the loop
            raise

    def _take(self, owner: tuple[_Key, ...], host: str) -> None:
        self._taken.update((("all", ""), *owner, ("host", host)))

    def _leave(self, owner: tuple[_Key, ...], host: str) -> None:
        for key in (("all", ""), *owner, ("host", host)):
            self._taken[key] -= 1
            if not self._taken[key]:
                del self._taken[key]
        for waiting in list(self._waiting):
            if not self._fit(("all", "")):
                return
            if self._fit(*waiting):
                self._admit(waiting)

    def _admit(self, owner: tuple[_Key, ...]) -> None:
        """Admits the first for each host for which there is a place; those lines, and their owner, go to the end."""
        lines = self._waiting[owner]
        has_one = False
        for host in list(lines):
            if not self._fit(("all", ""), *owner):
                break
            line = lines[host]
            while line and line[0].done():  # cancelled
                line.popleft()
            if line and self._fit(("host", host)):
                self._take(owner, host)
                line.popleft().set_result(None)
                lines[host] = lines.pop(host)
                has_one = True
            if not line:
                del lines[host]
        if has_one or not lines:
            del self._waiting[owner]
        if has_one and lines:
            self._waiting[owner] = lines

    def _fit(self, *keys: _Key) -> bool:
        return all(self._taken[key] < self._limits[key[0]] for key in keys)
