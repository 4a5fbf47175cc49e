"""Keeps long work out of the event loop, so that one large request does not stop the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import contextvars
import functools
from typing import Final, ParamSpec, TypeVar


_MAX_BYTES_ON_LOOP: Final = 16 * 1024
"""What JSON of this size can take is a few milliseconds; text and most questions about URLs are smaller."""

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_MAX_COMMON_BYTES: Final = 2 * 2**20
# Few threads, as they share the interpreter: the largest requests wait for each other, and no photograph for them.
_COMMON: Final = ThreadPoolExecutor(2, thread_name_prefix="body")
_LARGEST: Final = ThreadPoolExecutor(1, thread_name_prefix="largest-body")


async def off_loop(
    size: int,
    work: Callable[_Arguments, _Result],
    *args: _Arguments.args,
    **kwargs: _Arguments.kwargs,
) -> _Result:
    """Does the work, in a thread if it is about a large request.

    Args:
        size: Size of the request in bytes.
        work: The work; it sees the context variables of the caller.
        args: Its arguments.
        kwargs: Its keyword arguments.
    """
    if size <= _MAX_BYTES_ON_LOOP:
        return work(*args, **kwargs)
    call = functools.partial(contextvars.copy_context().run, work, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(
        _COMMON if size <= _MAX_COMMON_BYTES else _LARGEST, call
    )
