"""Admits requests up to a maximum in flight, knows who may abort them, and waits until none is left.

When the maximum is reached, a caller below its fair share takes the place of a request that has not begun, the newest
of the caller with the most; so one caller cannot fill the queue for the others.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
import contextlib
from dataclasses import dataclass, field
import random
import time
from typing import Final

from inference_service.errors import (
    AbortedError,
    DrainingError,
    QueueFullError,
    RequestIdInUseError,
    ServiceError,
)


_RATE_SAMPLES: Final = 64
_MIN_RETRY_S: Final = 1.0
_MAX_RETRY_S: Final = 60.0
_SPREAD: Final = (1.0, 1.5)
_MAX_REFUSALS: Final = 4096


@dataclass(slots=True, eq=False)
class AdmittedRequest:
    """A request in flight.

    Attributes:
        request_id: The caller's name for it.
        caller: The caller that may abort it; opaque.
        engine_id: Its name in the engine, where ids are shared by all callers.
        priority: Requests of its caller with a higher number give way before it.
        aborted: It was aborted.
        begun: It has a place in the batch and keeps it.
    """

    request_id: str
    caller: str
    engine_id: str
    priority: int = 0
    aborted: bool = False
    begun: bool = False
    _error: ServiceError | None = field(default=None, init=False)
    _abortable: asyncio.Timeout | None = field(default=None, init=False)

    def abort(self) -> None:
        """Marks it as aborted and ends an open `abortable` block."""
        self.aborted = True
        self.end(AbortedError("The request was aborted."))

    def end(self, error: ServiceError) -> None:
        """Ends an open or later `abortable` block with an error; the first error counts."""
        if self._error is None:
            self._error = error
            if self._abortable is not None:
                self._abortable.reschedule(asyncio.get_running_loop().time())

    def raise_if_aborted(self) -> None:
        """Raises AbortedError if it was aborted."""
        if self.aborted:
            raise AbortedError("The request was aborted.")

    @contextlib.asynccontextmanager
    async def abortable(self) -> AsyncIterator[None]:
        """Cancels the body when the request is aborted or ended; one block at a time.

        Raises:
            ServiceError: The body was cancelled, or the request had been aborted or ended before.
        """
        if self._error is not None:
            raise self._error
        try:
            async with asyncio.timeout(None) as self._abortable:
                yield
        except TimeoutError:
            if self._error is not None:
                raise self._error from None
            raise
        finally:
            self._abortable = None


class Demand:
    """Those who were refused and have probably not come back yet.

    Attributes:
        window_s: When they are expected to come back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.window_s = _MIN_RETRY_S
        self._clock = clock
        self._refusals: deque[tuple[float, str]] = deque()
        self._of_caller: Counter[str] = Counter()

    def refused(self, caller: str) -> int:
        """Counts a refusal; returns how many wait: those of the caller, or the callers if they are more."""
        now_s = self._clock()
        self._refusals.append((now_s, caller))
        self._of_caller[caller] += 1
        while self._refusals[0][0] < now_s - self.window_s or len(self._refusals) > _MAX_REFUSALS:
            _, gone = self._refusals.popleft()
            self._of_caller[gone] -= 1
            if not self._of_caller[gone]:
                del self._of_caller[gone]
        return max(self._of_caller[caller], len(self._of_caller))


class Admission:
    """Admits requests up to a maximum in flight, until it is closed. Belongs to one event loop."""

    def __init__(self, max_in_flight: int) -> None:
        self._max_in_flight = max_in_flight
        self._admitted: dict[tuple[str, str], AdmittedRequest] = {}  # in order of arrival
        self._of_caller: Counter[str] = Counter()
        self._engine_ids: set[str] = set()
        self._ends: deque[float] = deque(maxlen=_RATE_SAMPLES)
        self._demand = Demand()
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

    def cut(self) -> None:
        """Ends all requests that wait or are being prepared."""
        for admitted in self._admitted.values():
            admitted.end(draining())

    async def wait_idle(self) -> None:
        """Returns when no request is in flight."""
        await self._idle.wait()

    def check(self, caller: str) -> None:
        """Tells a caller before it sends a request that it would be refused.

        Raises:
            DrainingError: Admission is closed.
            QueueFullError: The maximum is in flight, and the caller has its share of it.
        """
        if self._closed:
            raise draining()
        if self.in_flight >= self._max_in_flight and self._replaceable(caller) is None:
            raise self._queue_full(caller)

    @contextlib.contextmanager
    def admit(self, request_id: str, caller: str, priority: int = 0) -> Iterator[AdmittedRequest]:
        """Counts a request as in flight while the context is open.

        Raises:
            DrainingError: Admission is closed.
            RequestIdInUseError: A request of this caller with this id is in flight.
            QueueFullError: The maximum is in flight, and the caller has its share of it.
        """
        key = caller, request_id
        if not self._closed and key in self._admitted:
            raise RequestIdInUseError(
                f"request_id {request_id!r} is used by a request in flight; choose another one.",
                field="spec.request_id",
            )
        self.check(caller)
        if self.in_flight >= self._max_in_flight and (victim := self._replaceable(caller)):
            victim.end(self._queue_full(victim.caller))
        admitted = self._admitted[key] = AdmittedRequest(
            request_id, caller, self._engine_id(request_id), priority
        )
        self._of_caller[caller] += 1
        self._idle.clear()
        try:
            yield admitted
        finally:
            self._remove(key, admitted)

    def abort(self, request_id: str, caller: str | None) -> list[str]:
        """Marks requests as aborted.

        Args:
            request_id: The id.
            caller: Who asks; None = an operator, who means every caller's request of that id.

        Returns:
            Their ids in the engine; none if the caller has no such request in flight.
        """
        found = [
            admitted
            for admitted in self._admitted.values()
            if admitted.request_id == request_id and caller in (None, admitted.caller)
        ]
        for admitted in found:
            admitted.abort()
        return [admitted.engine_id for admitted in found]

    def _remove(self, key: tuple[str, str], admitted: AdmittedRequest) -> None:
        del self._admitted[key]
        self._engine_ids.discard(admitted.engine_id)
        self._of_caller[admitted.caller] -= 1
        if not self._of_caller[admitted.caller]:
            del self._of_caller[admitted.caller]
        if admitted.begun:
            self._ends.append(time.monotonic())
        if not self._admitted:
            self._idle.set()

    def _engine_id(self, request_id: str) -> str:
        """The id itself, unless another caller uses it."""
        engine_id, number = request_id, 1
        while engine_id in self._engine_ids:
            number += 1
            engine_id = f"{request_id}~{number}"
        self._engine_ids.add(engine_id)
        return engine_id

    def _replaceable(self, caller: str) -> AdmittedRequest | None:
        """A request that this caller may replace: of those of the caller with the most that wait, the least urgent.

        Among equals, that is the newest.
        """
        share = self._max_in_flight / len({*self._of_caller, caller})
        if self._of_caller[caller] + 1 > share:
            return None
        greedy, count = max(self._of_caller.items(), key=lambda item: item[1])
        if count <= share:
            return None
        newest_first = (a for a in reversed(self._admitted.values()) if a.caller == greedy)
        waiting = (a for a in newest_first if not a.begun and a._error is None)  # noqa: SLF001
        return max(waiting, key=lambda admitted: admitted.priority, default=None)

    def _queue_full(self, caller: str) -> QueueFullError:
        own = self._of_caller[caller]
        return QueueFullError(
            f"{self.in_flight} requests are in flight, {own} of them yours; the maximum is {self._max_in_flight}"
            " (--max-queue), shared among callers. Try again later.",
            retry_after_s=self._retry_after_s(caller),
        )

    def _retry_after_s(self, caller: str) -> float:
        """The time in which as many requests as are in flight or were refused have lately been answered.

        So whoever waits for it is refused once or twice, however many they are. They do not all come back at once.
        """
        if len(self._ends) < 2:
            return _MIN_RETRY_S
        rate = (len(self._ends) - 1) / max(time.monotonic() - self._ends[0], 1e-3)
        wanted = self.in_flight + self._demand.refused(caller)
        wait_s = min(max(wanted / rate, _MIN_RETRY_S), _MAX_RETRY_S)
        self._demand.window_s = wait_s
        return float(round(wait_s * random.uniform(*_SPREAD)))  # noqa: S311 - no secret


def draining() -> DrainingError:
    """The error of requests that meet the end of the service."""
    return DrainingError(
        "The service is shutting down and accepts no new requests.", retry_after_s=5.0
    )
