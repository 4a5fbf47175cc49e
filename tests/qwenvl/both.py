"""Calls either client from asyncio, so that one test holds for both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
import inspect
from typing import Any

from qwenvl import AsyncClient, Client


CLIENTS = (Client, AsyncClient)
# Not the loop's own threads, which the service in the same process needs while the clients wait for it.
_THREADS = ThreadPoolExecutor(32)

EitherClient = Any
"""A `Client` or an `AsyncClient`: what differs between them is in this module."""


async def in_thread(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Calls a function that blocks."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_THREADS, partial(function, *arguments, **options))


async def call(method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Calls a method that returns a result: with `await`, or in a thread."""
    if inspect.iscoroutinefunction(method):
        return await method(*arguments, **options)
    return await in_thread(method, *arguments, **options)


async def pieces(stream: Any) -> list[Any]:
    """Reads a stream to its end."""
    if hasattr(stream, "__anext__"):
        return [piece async for piece in stream]
    return await in_thread(list, stream)


async def first(stream: Any) -> Any:
    """Reads the first piece of a stream."""
    return await (
        anext(stream) if hasattr(stream, "__anext__") else asyncio.to_thread(next, stream)
    )


async def close(closable: Any) -> None:
    """Closes a stream or a client."""
    await call(closable.close)
