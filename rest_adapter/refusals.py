"""Refuses callers that hammer before anything of their requests is read, and callers with very many calls in flight.

The service has refused such a caller a moment ago because it has its share, so it would do so again. Reading a body and
asking the service costs several times what the refusal itself does, and that at the expense of those who are answered.
All calls share one connection to each replica, whose streams one caller must not fill. Bodies can be held back and end
at once, so that their caller is looked at again when they are there.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable
import contextlib
import time
from typing import Final

import grpc
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from qwenvl.observability import current_call
from qwenvl.pacing import RefusalPacing
from rest_adapter.dialect import error_response
from rest_adapter.dropped import drop_body
from rest_adapter.errors import ApiError, of_reason


MAX_CALLS: Final = 512
"""Calls of one key in flight: half of the streams of a connection, of which the service allows 1,024."""

_HOLD_S: Final = 0.25
"""What the service has refused, it would still refuse after so long; then it is asked again."""
_REASONS: Final = frozenset(("QUEUE_FULL", "RATE_LIMIT_EXCEEDED"))
_MAX_CALLERS: Final = 1000
_SMALL_BYTES: Final = 64 * 1024
_DISCARD_S: Final = 1.0


class RefuseHammering:
    """ASGI middleware that answers callers whose refusals come too fast with the service's last one, and ever later.

    Args:
        app: The application.
        clock: Seconds from any beginning.
        max_calls: Maximum number of calls of one caller in flight; None = callers cannot be told apart.
    """

    def __init__(
        self,
        app: ASGIApp,
        clock: Callable[[], float] = time.monotonic,
        max_calls: int | None = MAX_CALLS,
    ) -> None:
        self._app = app
        self._clock = clock
        self._max_calls = max_calls
        self._pacing = RefusalPacing(clock)
        self._last: OrderedDict[str, tuple[float, ApiError]] = OrderedDict()
        self._in_flight: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it."""
        call = current_call()
        is_asked = scope["type"] == "http" and scope["method"] == "POST"
        # To cancel an answer needs no place of its own.
        if not is_asked or call is None or scope["path"].endswith("/cancel"):
            await self._app(scope, receive, send)
            return
        caller = call.caller
        if (error := self._refusal(caller)) is not None:
            drop_body(scope["state"])
            await self._pacing.wait(caller)
            await _discard_small(scope, receive)
            await error_response(scope, error)(scope, receive, send)
            return
        calls = scope["state"]["calls"] = _Calls(self, caller)
        try:
            await self._app(scope, receive, send)
        finally:
            calls.end()
        failure = scope["state"].get("error")
        if isinstance(failure, ApiError) and _is_about_caller(failure):
            self._note(caller, failure)

    async def look_again(self, caller: str, release: Callable[[], None]) -> None:
        """Refuses a caller whose body is there; see `begin_calls`."""
        if (error := self._refusal(caller)) is not None:
            release()
            await self._pacing.wait(caller)
            raise error

    def take(self, caller: str, count: int) -> None:
        """Counts calls of a caller as in flight.

        Raises:
            ApiError: They would be too many.
        """
        if self._has_all(caller, count):
            raise self._too_many()
        self._in_flight[caller] += count

    def give_back(self, caller: str, count: int) -> None:
        """Counts calls as ended."""
        self._in_flight[caller] -= count
        if not self._in_flight[caller]:
            del self._in_flight[caller]

    def _refusal(self, caller: str) -> ApiError | None:
        """The error for a caller that is to be refused now, a new one, as it refers to the request that it ends."""
        then, error = self._last.get(caller, (0.0, None))
        if error is not None and self._clock() < then + _HOLD_S:
            return of_reason(
                error.reason,
                error.message,
                retry_after_s=error.retry_after_s,
                metadata=error.metadata,
            )
        return self._too_many() if self._has_all(caller, 1) else None

    def _has_all(self, caller: str, count: int) -> bool:
        return self._max_calls is not None and self._in_flight[caller] + count > self._max_calls

    def _too_many(self) -> ApiError:
        return of_reason(
            "QUEUE_FULL",
            f"You have as many calls in flight at this adapter as one key may, {self._max_calls}; try again later.",
        )

    def _note(self, caller: str, failure: ApiError) -> None:
        """Remembers a refusal, which the service has delayed already."""
        # Its frames have the whole request.
        failure.__traceback__ = failure.__cause__ = failure.__context__ = None
        self._pacing.delay_s(caller)
        if self._pacing.is_over(caller):
            self._last.pop(caller, None)
            self._last[caller] = self._clock(), failure
            if len(self._last) > _MAX_CALLERS:
                self._last.popitem(last=False)


def _is_about_caller(failure: ApiError) -> bool:
    """Whether the service would refuse any request of the caller.

    What the adapter itself refuses is about the size of one body, and what names a field is about the images of one.
    """
    is_of_service = isinstance(failure.__cause__, grpc.RpcError)
    return failure.reason in _REASONS and is_of_service and failure.param is None


class _Calls:
    """The calls of one request.

    Args:
        door: Counts them.
        caller: Whose they are.
    """

    def __init__(self, door: RefuseHammering, caller: str) -> None:
        self._door = door
        self._caller = caller
        self._count = 0

    async def begin(self, release: Callable[[], None]) -> None:
        await self._door.look_again(self._caller, release)
        self.take(1)

    def take(self, count: int) -> None:
        self._door.take(self._caller, count)
        self._count += count

    def end(self) -> None:
        self._door.give_back(self._caller, self._count)


async def begin_calls(scope: Scope, release: Callable[[], None]) -> None:
    """Counts the call of a request whose body is there, unless its caller would be refused if it came now.

    Args:
        scope: That of the request.
        release: Lets go of the body; it is called before a refusal waits.

    Raises:
        ApiError: The caller is refused.
    """
    calls = scope["state"].get("calls")
    if isinstance(calls, _Calls):
        await calls.begin(release)


def take_calls(scope: Scope, count: int) -> None:
    """Counts further calls of a request.

    Raises:
        ApiError: They are more than its caller may have.
    """
    calls = scope["state"].get("calls")
    if isinstance(calls, _Calls):
        calls.take(count)


async def _discard_small(scope: Scope, receive: Receive) -> None:
    """Receives a small body, so that the connection can go on; it is closed otherwise, and the client opens another."""
    length = Headers(scope=scope).get("content-length", "")
    if not length.isdecimal() or int(length) > _SMALL_BYTES:
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_S):
            while (await receive()).get("more_body", False):
                pass
