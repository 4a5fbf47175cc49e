"""One decode worker as the front sees it: starts the process, gives it jobs, reads its replies, and kills it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
import fcntl
import os
import socket
import subprocess
import time
from typing import Final

import msgspec

from inference_service.engine_protocol import wire
from inference_service.media.worker_protocol import (
    LENGTH,
    MAX_REPLY_BYTES,
    REPLIES,
    Done,
    Job,
    Ready,
    Reply,
    encode,
)


START_TIMEOUT_S: Final = 60.0
_READ_BYTES: Final = 65536


class WorkerLostError(Exception):
    """The worker ended, or sent nonsense, while it worked on a job."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a worker answered.

    Attributes:
        reply: The reply.
        pixels: The pixels of `Done`.
        seconds: Time on the worker.
    """

    reply: Reply
    pixels: memoryview
    seconds: float


class Worker:
    """A worker process: the constructor starts it. It does one job at a time."""

    def __init__(self, command: Sequence[str], *, any_cost: bool) -> None:
        """Starts the process, by exec and in the event loop's thread, with which it dies.

        Args:
            command: Program and arguments; `--fd N --parent PID` is appended.
            any_cost: It takes expensive jobs too.

        Raises:
            OSError: The program cannot be started.
        """
        self.any_cost = any_cost
        self.ready = False
        self.running: asyncio.Future[Outcome] | None = None
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._fds: list[int] = []
        self._readable: asyncio.Future[None] | None = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            arguments = ["--fd", str(theirs.fileno()), "--parent", str(os.getpid())]
            try:
                self.process = subprocess.Popen(  # noqa: S603 - this package's own module
                    [*command, *arguments], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
                )
            except OSError:
                ours.close()
                raise
        ours.setblocking(False)
        self._socket = ours

    async def wait_ready(self) -> None:
        """Returns when the process has imported everything.

        Raises:
            WorkerLostError: It ended, or did not start in time.
        """
        if self.ready:
            return
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                self.ready = isinstance(await self._receive(), Ready)
        except TimeoutError:
            raise WorkerLostError("it did not start in time") from None
        if not self.ready:
            raise WorkerLostError("it did not say that it is ready")

    async def run(self, job: Job, files: Sequence[bytes]) -> Outcome:
        """Does a job.

        Raises:
            WorkerLostError: The process ended or sent nonsense; it is of no use any more.
        """
        started = time.monotonic()
        try:
            await self._loop.sock_sendall(self._socket, encode(job))
            for data in files:
                await self._loop.sock_sendall(self._socket, data)
        except OSError as error:
            raise WorkerLostError(f"writing to it failed: {error.strerror}") from error
        reply = await self._receive()
        pixels = memoryview(b"")
        if isinstance(reply, Done):
            pixels = self._pixels(sum(image.pixel_bytes for image in reply.images))
        return Outcome(reply, pixels, time.monotonic() - started)

    def kill(self) -> None:
        """Kills the process, cancels its job and forgets what it sent."""
        if self.running is not None:
            self.running.cancel()
        if self._readable is not None:
            _set(self._readable)
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        self.process.kill()

    def _pixels(self, size: int) -> memoryview:
        if len(self._fds) != 1:
            raise WorkerLostError("it sent no memfd with its pixels")
        fd = self._fds.pop()
        try:
            if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
                os.close(fd)
                raise WorkerLostError("its memfd is not sealed")
            return wire.map_pixels(fd, size)
        except (OSError, ValueError, wire.WireError) as error:
            raise WorkerLostError(f"its memfd cannot be read: {error}") from error

    async def _receive(self) -> Reply:
        while True:
            if len(self._buffer) >= LENGTH.size:
                (size,) = LENGTH.unpack_from(self._buffer)
                if size > MAX_REPLY_BYTES:
                    raise WorkerLostError(f"it sent a reply of {size} bytes")
                end = LENGTH.size + size
                if len(self._buffer) >= end:
                    payload = bytes(self._buffer[LENGTH.size : end])
                    del self._buffer[:end]
                    return _decoded(payload)
            await self._read()

    async def _read(self) -> None:
        self._readable = self._loop.create_future()
        self._loop.add_reader(self._socket, _set, self._readable)
        try:
            await self._readable
        finally:
            if self._socket.fileno() >= 0:
                self._loop.remove_reader(self._socket)
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, _READ_BYTES, 4, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError as error:
            raise WorkerLostError(f"reading from it failed: {error.strerror}") from error
        self._fds += fds
        if not data:
            raise WorkerLostError("it ended")
        self._buffer += data


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _decoded(payload: bytes) -> Reply:
    try:
        return REPLIES.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WorkerLostError("it sent an invalid reply") from error
