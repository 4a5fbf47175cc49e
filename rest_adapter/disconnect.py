"""Cancels the work for clients that disconnect."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.types import Receive

from rest_adapter.errors import aborted
from rest_adapter.metrics import CLIENT_DISCONNECTS


_Answer = TypeVar("_Answer")


async def until_disconnected(receive: Receive) -> None:
    """Returns when the client has disconnected; the body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_connected(request: Request, work: Coroutine[Any, Any, _Answer]) -> _Answer:
    """Awaits the work, and cancels it if the client disconnects; Starlette does so for streams only."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(until_disconnected(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            CLIENT_DISCONNECTS.labels("waiting").inc()
            raise aborted()
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
