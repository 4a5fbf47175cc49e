"""Admits requests up to a maximum in flight, knows who may abort them, and waits until none is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
import contextlib
from dataclasses import dataclass, field

from inference_service.errors import (
    AbortedError,
    DrainingError,
    QueueFullError,
    RequestIdInUseError,
)


@dataclass(slots=True)
class AdmittedRequest:
    """A request in flight.

    Attributes:
        caller: The caller that may abort it; opaque.
        aborted: It was aborted.
    """

    caller: str
    aborted: bool = False
    _abortable: asyncio.Timeout | None = field(default=None, init=False)

    def abort(self) -> None:
        """Marks it as aborted and ends an open `abortable` block."""
        if not self.aborted:
            self.aborted = True
            if self._abortable is not None:
                self._abortable.reschedule(asyncio.get_running_loop().time())

    def raise_if_aborted(self) -> None:
        """Raises AbortedError if it was aborted."""
        if self.aborted:
            raise AbortedError("The request was aborted.")

    @contextlib.asynccontextmanager
    async def abortable(self) -> AsyncIterator[None]:
        """Cancels the body when the request is aborted; one block at a time.

        Raises:
            AbortedError: The body was cancelled.
        """
        try:
            async with asyncio.timeout(None) as self._abortable:
                yield
        except TimeoutError:
            self.raise_if_aborted()
            raise
        finally:
            self._abortable = None


class Admission:
    """Admits requests up to a maximum in flight, until it is closed. Belongs to one event loop."""

    def __init__(self, max_in_flight: int) -> None:
        self._max_in_flight = max_in_flight
        self._admitted: dict[str, AdmittedRequest] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    @property
    def in_flight(self) -> int:
        """Requests in flight."""
        return len(self._admitted)

    @property
    def closed(self) -> bool:
        """Whether no new request is admitted."""
        return self._closed

    def close(self) -> None:
        """Stops admitting requests."""
        self._closed = True

    async def wait_idle(self) -> None:
        """Returns when no request is in flight."""
        await self._idle.wait()

    @contextlib.contextmanager
    def admit(self, request_id: str, caller: str) -> Iterator[AdmittedRequest]:
        """Counts a request as in flight while the context is open.

        Raises:
            DrainingError: Admission is closed.
            RequestIdInUseError: A request with this id is in flight.
            QueueFullError: The maximum number of requests is in flight.
        """
        if self._closed:
            raise DrainingError(
                "The service is shutting down and accepts no new requests.", retry_after_s=5.0
            )
        if request_id in self._admitted:
            raise RequestIdInUseError(
                f"request_id {request_id!r} is used by a request in flight; choose another one.",
                field="spec.request_id",
            )
        if len(self._admitted) >= self._max_in_flight:
            raise QueueFullError(
                f"{len(self._admitted)} requests are in flight, the maximum (--max-queue); try again later.",
                retry_after_s=1.0,
            )
        admitted = self._admitted[request_id] = AdmittedRequest(caller)
        self._idle.clear()
        try:
            yield admitted
        finally:
            del self._admitted[request_id]
            if not self._admitted:
                self._idle.set()

    def abort(self, request_id: str, caller: str | None) -> bool:
        """Marks a request as aborted; False if the caller (None = an operator) has no such request in flight."""
        admitted = self._admitted.get(request_id)
        if admitted is None or caller not in (None, admitted.caller):
            return False
        admitted.abort()
        return True
