"""Threads in which callers take turns: nobody waits for all the work that another caller has sent before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
import contextlib
import threading
from typing import Any, Final, TypeVar


_Result = TypeVar("_Result")


class FairPool:
    """Runs work in threads: of the callers that wait one after the other, of each its oldest.

    Does not belong to an event loop.

    Args:
        threads: Number of threads.
        name: Beginning of their names.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[_Job[Any]]] = {}  # the caller of the next turn is first

    def submit(self, caller: str, work: Callable[[], _Result]) -> Future[_Result]:
        """Runs a caller's work when it is its turn; what is cancelled before is dropped at once."""
        job = _Job(self, caller, work)
        with self._lock:
            self._waiting.setdefault(caller, deque()).append(job)
        # Not this work, but whichever has its turn when a thread is free.
        self._pool.submit(self._run_next)
        return job

    def _run_next(self) -> None:
        while (job := self._next()) is not None:
            if job.set_running_or_notify_cancel():
                job.run()
                break
        # The traceback of an error has this frame, too.
        del job

    def _next(self) -> _Job[Any] | None:
        """The work whose turn it is; None = all that waited was cancelled."""
        with self._lock:
            for caller, queue in self._waiting.items():
                job = queue.popleft()
                del self._waiting[caller]
                if queue:
                    self._waiting[caller] = queue
                return job
        return None

    def drop(self, job: _Job[Any]) -> None:
        """Forgets work that was cancelled: its request may be large, and it has no turn."""
        with self._lock, contextlib.suppress(KeyError, ValueError):  # it has its turn just now
            queue = self._waiting[job.caller]
            queue.remove(job)
            if not queue:
                del self._waiting[job.caller]


class _Job(Future[_Result]):
    """Work of one caller."""

    def __init__(self, pool: FairPool, caller: str, work: Callable[[], _Result]) -> None:
        super().__init__()
        self.caller: Final = caller
        self._owner = pool
        self._work = work

    def cancel(self) -> bool:
        is_cancelled = super().cancel()
        if is_cancelled:
            self._owner.drop(self)
        return is_cancelled

    def run(self) -> None:
        try:
            result = self._work()
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is awaited
            self.set_exception(error)
            # The traceback has this frame, and would keep the request until the next collection.
            del self
        else:
            self.set_result(result)
