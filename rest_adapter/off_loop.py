"""Keeps long work out of the event loop, so that one large request does not stop the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
import contextvars
import functools
from typing import Final, ParamSpec, TypeVar

from rest_adapter.fair_pool import FairPool


_MAX_BYTES_ON_LOOP: Final = 16 * 1024
"""What JSON of this size can take is a few milliseconds; text and most questions about URLs are smaller."""

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_MAX_COMMON_BYTES: Final = 2 * 2**20
# Few threads, as they share the interpreter: the largest requests wait for each other, and no photograph for them.
_COMMON: Final = FairPool(2, "body")
_LARGEST: Final = FairPool(1, "largest-body")
_CALLER: Final = contextvars.ContextVar("caller", default="")


def work_for(caller: str) -> None:
    """Says whose work that of the current context is from now on."""
    _CALLER.set(caller)


async def off_loop(
    size: int,
    work: Callable[_Arguments, _Result],
    *args: _Arguments.args,
    **kwargs: _Arguments.kwargs,
) -> _Result:
    """Does the work, in a thread if it is about a large request; callers take turns there, see `work_for`.

    Args:
        size: Size of the request in bytes.
        work: The work; it sees the context variables of the caller.
        args: Its arguments.
        kwargs: Its keyword arguments.
    """
    if size <= _MAX_BYTES_ON_LOOP:
        return work(*args, **kwargs)
    call = functools.partial(contextvars.copy_context().run, work, *args, **kwargs)
    pool = _COMMON if size <= _MAX_COMMON_BYTES else _LARGEST
    return await asyncio.wrap_future(pool.submit(_CALLER.get(), call))
