"""A pool of decode workers: processes that are killed at a deadline or when nobody waits for them, and replaced.

Jobs that are cheap by their header never wait behind expensive ones: with two workers or more, half of them take only
cheap jobs. A job that is not as cheap as its header says is ended there and begun anew as an expensive one. The next
job is of the caller that has the fewest workers, of equal ones that which has lately used them least; a job that has
waited for as long as its caller has used them is like one of a newcomer.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Sequence
import contextlib
from dataclasses import dataclass
import logging
import signal
import subprocess
import sys
import time
from typing import Final

import msgspec

from inference_service.errors import InternalError
from inference_service.media.worker_process import Outcome, Worker, WorkerLostError
from inference_service.media.worker_protocol import Failed, Job
from inference_service.media.worker_use import WorkerUse


DEFAULT_COMMAND: Final = (sys.executable, "-P", "-m", "inference_service.media.worker")
GRACE_S: Final = 0.25
"""A job whose caller has left may finish within this time: to kill a worker costs more than most jobs."""

CHEAP_CPU_S: Final = 4.0
"""CPU time of a job on a worker for cheap ones. Honest ones take up to 1 s, and may have a slower processor."""

_REAP_POLL_S: Final = 0.02
_CLOSE_S: Final = 2.0

logger = logging.getLogger(__name__)


class JobTimeoutError(Exception):
    """The job was not done in time; its worker was killed."""


class _CpuTimeError(JobTimeoutError):
    """The kernel ended the job."""


@dataclass(eq=False, slots=True)
class _Waiter:
    """A job that waits for a worker."""

    caller: str
    expensive: bool
    asked_s: float
    worker: asyncio.Future[Worker]


class WorkerPool:
    """Workers for the jobs of one event loop."""

    def __init__(self, size: int, *, memory_mib: int, command: Sequence[str] | None = None) -> None:
        """Does not start the workers yet; `start` or the first job does.

        Args:
            size: Number of workers, at least 1.
            memory_mib: Maximum memory of a worker beyond what it has when it starts.
            command: Program and arguments of a worker.
        """
        self._command = (*(command or DEFAULT_COMMAND), "--memory-mib", str(memory_mib))
        # `any_cost` of the workers to start
        self._missing = [index >= size // 2 for index in range(size)]
        self._idle: list[Worker] = []
        self._busy: dict[Worker, tuple[str, float]] = {}  # for whom, and since when
        self._use = WorkerUse()
        self._waiters: list[_Waiter] = []
        self._ended: list[subprocess.Popen[bytes]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the running workers."""
        return tuple(worker.process.pid for worker in (*self._idle, *self._busy))

    def start(self) -> None:
        """Starts all workers that are missing; call it in the event loop's thread."""
        for worker in [worker for worker in self._idle if worker.process.poll() is not None]:
            self._idle.remove(worker)
            self._lose(worker, "it ended while it had nothing to do", replace=False)
        while self._missing and not self._closed:
            any_cost = self._missing.pop()
            try:
                worker = Worker(self._command, any_cost=any_cost)
            except OSError as error:
                self._missing.append(any_cost)
                logger.error("a decode worker cannot be started: %s", error.strerror)  # noqa: TRY400
                self._refuse_hopeless()
                return
            self._give(worker)

    async def run(
        self,
        job: Job,
        files: Sequence[bytes],
        *,
        expensive: bool,
        timeout_s: float,
        caller: str = "",
    ) -> Outcome:
        """Does a job on the next worker that is free; if the caller is cancelled, the worker soon is free again.

        Args:
            job: The job.
            files: The files that belong to it.
            expensive: It may take long.
            timeout_s: Maximum time on the worker.
            caller: Whose it is; empty = unknown.

        Raises:
            JobTimeoutError: It took longer.
            WorkerLostError: The worker ended on this job.
            InternalError: No worker can be started.
        """
        expensive = expensive or not self._use.trusts(caller)
        worker = await self._take(expensive=expensive, caller=caller)
        if worker.any_cost or job.cpu_s <= CHEAP_CPU_S:
            return await self._run_on(worker, job, files, timeout_s)
        try:
            cheap = msgspec.structs.replace(job, cpu_s=CHEAP_CPU_S)
            return await self._run_on(worker, cheap, files, timeout_s)
        except _CpuTimeError:
            self._use.distrust(caller)
        worker = await self._take(expensive=True, caller=caller)
        return await self._run_on(worker, job, files, timeout_s)

    async def _run_on(
        self, worker: Worker, job: Job, files: Sequence[bytes], timeout_s: float
    ) -> Outcome:
        """Does a job on a worker that was taken for it."""
        try:
            await worker.wait_ready()
        except WorkerLostError as error:
            self._lose(worker, f"while it started: {error}", replace=False)
            raise _not_starting() from None
        except asyncio.CancelledError:
            self._give(worker)
            raise
        worker.running = running = asyncio.ensure_future(worker.run(job, files))
        try:
            await asyncio.wait([running], timeout=timeout_s)
        except asyncio.CancelledError:
            self._spawn(self._finish(worker, running))
            raise
        if not running.done():
            self._lose(worker, f"a job took more than {timeout_s:g} s")
            raise JobTimeoutError
        return await self._settle(worker, running)

    def close(self) -> None:
        """Kills all workers, whatever they do; jobs end with an error."""
        self._closed = True
        workers = [*self._idle, *self._busy]
        for worker in workers:
            worker.kill()
        self._idle.clear()
        self._busy.clear()
        for waiter in self._waiters:
            if not waiter.worker.done():
                waiter.worker.set_exception(_ending())
        for task in self._tasks:
            task.cancel()
        for process in (*self._ended, *(worker.process for worker in workers)):
            with contextlib.suppress(subprocess.TimeoutExpired):  # killed: this takes milliseconds
                process.wait(_CLOSE_S)

    # ---- who works ----

    async def _take(self, *, expensive: bool, caller: str = "") -> Worker:
        if self._closed:
            raise _ending()
        self.start()
        able = [worker for worker in self._idle if worker.any_cost or not expensive]
        if able:
            worker = min(able, key=lambda worker: worker.any_cost)  # keep those of any cost free
            self._idle.remove(worker)
            self._busy[worker] = (caller, time.monotonic())
        elif self._is_hopeless(expensive=expensive):
            raise _not_starting()
        else:
            admitted = asyncio.get_running_loop().create_future()
            waiter = _Waiter(caller, expensive, time.monotonic(), admitted)
            self._waiters.append(waiter)
            try:
                worker = await waiter.worker
            except asyncio.CancelledError:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
                elif not waiter.worker.cancelled() and waiter.worker.exception() is None:
                    self._give(waiter.worker.result())
                raise
        return worker

    def _is_hopeless(self, *, expensive: bool) -> bool:
        """Whether there is no worker, free or not, for such a job."""
        workers = (*self._idle, *self._busy)
        return not any(worker.any_cost or not expensive for worker in workers)

    def _refuse_hopeless(self) -> None:
        """Ends the waiting of jobs for which no worker can be started."""
        for waiter in tuple(self._waiters):
            if self._is_hopeless(expensive=waiter.expensive) and not waiter.worker.done():
                self._waiters.remove(waiter)
                waiter.worker.set_exception(_not_starting())

    def _give(self, worker: Worker) -> None:
        """Gives a worker to the next job that waits for one like it."""
        self._end_use(worker)
        worker.running = None  # its outcome holds the pixels
        workers = Counter(caller for caller, _ in self._busy.values())
        waiter = min(
            (
                waiter
                for waiter in self._waiters
                if not waiter.worker.done() and (worker.any_cost or not waiter.expensive)
            ),
            key=lambda waiter: (
                workers[waiter.caller],
                waiter.asked_s + self._use.seconds(waiter.caller),
            ),
            default=None,
        )
        if waiter is None:
            self._idle.append(worker)
            return
        self._waiters.remove(waiter)
        waiter.worker.set_result(worker)
        self._busy[worker] = (waiter.caller, time.monotonic())

    def _end_use(self, worker: Worker) -> None:
        caller, since_s = self._busy.pop(worker, (None, 0.0))
        if caller is not None:
            self._use.add(caller, time.monotonic() - since_s)

    async def _settle(self, worker: Worker, running: asyncio.Future[Outcome]) -> Outcome:
        if running.cancelled():
            raise WorkerLostError("the pool was closed")
        try:
            outcome = running.result()
        except WorkerLostError as error:
            try:
                timed_out = await _status(worker.process) == -signal.SIGXCPU
            finally:  # also if the caller leaves meanwhile
                self._lose(worker, str(error))
            if timed_out:
                raise _CpuTimeError from None
            raise
        self._give(worker)
        if isinstance(outcome.reply, Failed):
            logger.error("a decode worker failed: %s", outcome.reply.traceback)
        return outcome

    async def _finish(self, worker: Worker, running: asyncio.Future[Outcome]) -> None:
        """Lets a job whose caller has left go on for a moment, and then kills its worker."""
        await asyncio.wait([running], timeout=GRACE_S)
        if running.cancelled():
            return  # the pool was closed
        if running.done() and running.exception() is None:
            self._give(worker)
        else:
            self._lose(worker, "nobody waits for its job", level=logging.INFO)

    def _lose(
        self, worker: Worker, reason: str, *, replace: bool = True, level: int = logging.WARNING
    ) -> None:
        """Kills a worker and starts another."""
        if self._closed:
            return
        logger.log(level, "decode worker %d was lost: %s", worker.process.pid, reason)
        self._end_use(worker)
        worker.kill()
        self._ended.append(worker.process)
        self._missing.append(worker.any_cost)
        self._spawn(self._reap())
        if replace or self._waiters:
            self.start()

    async def _reap(self) -> None:
        while self._ended:
            self._ended = [process for process in self._ended if process.poll() is None]
            await asyncio.sleep(_REAP_POLL_S)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _ending() -> InternalError:
    return InternalError("The images cannot be decoded: the service is ending.")


def _not_starting() -> InternalError:
    return InternalError("The images cannot be decoded: no decode worker starts.")


async def _status(process: subprocess.Popen[bytes]) -> int | None:
    """The status of a process that has closed its socket, which ends at once or not at all."""
    for _ in range(25):
        if process.poll() is not None:
            break
        await asyncio.sleep(_REAP_POLL_S)
    return process.returncode
