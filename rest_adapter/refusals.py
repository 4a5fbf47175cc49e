"""Refuses callers that hammer before anything of their requests is read.

The service has refused such a caller a moment ago because it has its share, so it would do so again. Reading a body and
asking the service costs several times what the refusal itself does, and that at the expense of those who are answered.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
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
from rest_adapter.errors import ApiError


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
    """

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._clock = clock
        self._pacing = RefusalPacing(clock)
        self._last: OrderedDict[str, tuple[float, ApiError]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it."""
        call = current_call()
        is_asked = scope["type"] == "http" and scope["method"] == "POST"
        # To cancel an answer needs no place of its own.
        if not is_asked or call is None or scope["path"].endswith("/cancel"):
            await self._app(scope, receive, send)
            return
        then, error = self._last.get(call.caller, (0.0, None))
        if error is not None and self._clock() < then + _HOLD_S:
            await self._pacing.wait(call.caller)
            await _discard_small(scope, receive)
            await error_response(scope, error)(scope, receive, send)
            return
        await self._app(scope, receive, send)
        failure = scope["state"].get("error")
        if isinstance(failure, ApiError) and failure.reason in _REASONS and _is_of_service(failure):
            self._note(call.caller, failure)

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


def _is_of_service(failure: ApiError) -> bool:
    """Whether the service has refused; what the adapter itself refuses is about the size of one body."""
    return isinstance(failure.__cause__, grpc.RpcError)


async def _discard_small(scope: Scope, receive: Receive) -> None:
    """Receives a small body, so that the connection can go on; it is closed otherwise, and the client opens another."""
    length = Headers(scope=scope).get("content-length", "")
    if not length.isdecimal() or int(length) > _SMALL_BYTES:
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_S):
            while (await receive()).get("more_body", False):
                pass
