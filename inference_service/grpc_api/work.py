"""Runs work on large messages in threads, so that it does not stop the event loop."""

from __future__ import annotations

from collections.abc import Callable
import contextvars
from typing import Final, TypeVar

from inference_service.fair_threads import FairThreads
from inference_service.grpc_api.call_context import this_call


INLINE_BYTES: Final = 8 * 2**10
"""Messages up to this size take less time than a change of threads costs others."""

BYTES_PER_TOKEN: Final = 4
"""About how large a token id in a message counts."""

MAX_TOKEN_BYTES: Final = 128
"""The longest text of a token of Qwen's vocabularies."""

_THREADS: Final = FairThreads(2, "messages")

T = TypeVar("T")


async def for_size(num_bytes: int, work: Callable[[], T], *, is_costly: bool = False) -> T:
    """Runs `work` on a message of the current call: here if it is small, else in a thread, in the same context.

    Args:
        num_bytes: Bytes of the message.
        work: The work.
        is_costly: It may take long on a small message, too.
    """
    if num_bytes <= INLINE_BYTES and not is_costly:
        return work()
    context = contextvars.copy_context()
    return await _THREADS.run(this_call().caller, lambda: context.run(work))
