"""Starts one engine process, exchanges messages with it over a socket, and ends it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
import contextlib
import os
import socket
import subprocess
import sys
import time
from typing import Final

from inference_service.engine_protocol import wire
from qwenvl.safe_path import child_environment


DEFAULT_COMMAND: Final = (sys.executable, "-P", "-m", "inference_service.engine.process")
TRANSFORMERS_COMMAND: Final = (
    *DEFAULT_COMMAND[:-1],
    "inference_service.transformers_engine.process",
)
_REAP_POLL_S: Final = 0.02
_SPINS: Final = "20000"
"""How long threads of torch wait for each other before they sleep: a millisecond, not 15 as is the default. Where other
processes, such as the front, need the same cores, waiting threads keep those from running that they wait for."""


class EngineProcess:
    """An engine process and this end of its socket, before anybody talks to it.

    The process is made by exec, never by fork alone, and dies with the *thread* that constructs this (that is what
    PR_SET_PDEATHSIG watches): construct it in the thread of the event loop, never in a worker thread.

    Attributes:
        process: The process.
        socket: This end, not blocking.
    """

    def __init__(self, command: Sequence[str]) -> None:
        """Starts the process.

        Args:
            command: Program and arguments; `--fd N --parent PID` is appended.

        Raises:
            OSError: The program cannot be started.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            arguments = ["--fd", str(theirs.fileno()), "--parent", str(os.getpid())]
            try:
                self.process = subprocess.Popen(  # noqa: S603 - this package's own module
                    [*command, *arguments],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=_engine_environment(os.environ),
                )
            except OSError:
                ours.close()
                raise
        ours.setblocking(False)
        self.socket = ours

    @classmethod
    def start_early(cls, command: Sequence[str]) -> EngineProcess | None:
        """Starts the first process while nobody waits for it; None if it cannot be started, which its user reports."""
        try:
            return cls(command)
        except OSError:
            return None

    def end(self) -> None:
        """Ends the process, if it runs."""
        self.socket.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class EngineChild:
    """A connection to an engine process: `reap` ends both.

    Attributes:
        lost: Done when the connection is lost; its result is the reason.
        last_event: `time.monotonic()` of the last message, or of the start.
    """

    def __init__(self, engine: EngineProcess, on_event: Callable[[wire.Event], None]) -> None:
        """Connects to a process.

        Args:
            engine: The process.
            on_event: Called in the event loop with every message of the engine.
        """
        self._loop = asyncio.get_running_loop()
        self._on_event = on_event
        self._reader = wire.event_reader()
        self._outbox: deque[tuple[memoryview, int | None]] = deque()
        self.lost: asyncio.Future[str] = self._loop.create_future()
        self.last_event = time.monotonic()
        self._process = engine.process
        self._socket = engine.socket
        self._loop.add_reader(self._socket, self._on_readable)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def send(self, command: wire.Command, pixel_fd: int | None = None) -> None:
        """Sends a command as soon as the socket is writable; does nothing if the connection is lost.

        Args:
            command: The message.
            pixel_fd: A memfd to send along; this method takes ownership and closes it.

        Raises:
            WireError: The message is too long.
        """
        try:
            frame = wire.encode(command)
        except wire.WireError:
            _close(pixel_fd)
            raise
        if self.lost.done():
            _close(pixel_fd)
            return
        self._outbox.append((memoryview(frame), pixel_fd))
        if len(self._outbox) == 1:
            self._flush()

    def _flush(self) -> None:
        """Writes as much as the socket accepts; the rest follows when it is writable again."""
        try:
            while self._outbox:
                frame, fd = self._outbox[0]
                if fd is None:
                    sent = self._socket.send(frame)
                else:
                    sent = socket.send_fds(self._socket, [frame], [fd])
                    os.close(fd)
                if sent == len(frame):
                    self._outbox.popleft()
                else:
                    self._outbox[0] = (frame[sent:], None)
        except BlockingIOError:
            self._loop.add_writer(self._socket, self._flush)
        except OSError as error:
            self.lose(f"writing to it failed: {error.strerror}")
        else:
            self._loop.remove_writer(self._socket)

    def _on_readable(self) -> None:
        try:
            data = self._socket.recv(wire.READ_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self.lose("it closed the connection")
            return
        try:
            events = self._reader.feed(data)
        except wire.WireError as error:
            self.lose(f"it sent an invalid message: {error}")
            return
        self.last_event = time.monotonic()
        for event in events:
            self._on_event(event)

    def lose(self, reason: str) -> None:
        """Closes the connection for good."""
        if self.lost.done():
            return
        self.lost.set_result(reason)
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        for _, fd in self._outbox:
            _close(fd)
        self._outbox.clear()

    async def reap(self, grace_s: float) -> int:
        """Closes the connection, waits for the process to end, kills it after `grace_s`, and returns its status.

        Polling needs no child watcher and no thread, and works the same under asyncio and uvloop.
        """
        self.lose("it is no longer needed")
        deadline = time.monotonic() + grace_s
        try:
            while self._process.poll() is None:
                if time.monotonic() >= deadline:
                    self._process.kill()
                await asyncio.sleep(_REAP_POLL_S)
        finally:
            if self._process.poll() is None:  # cancelled while waiting
                self._process.kill()
                self._process.wait()
        return self._process.returncode

    def has_exited(self) -> bool:
        """Whether the process has ended; a grandchild may still hold its socket open."""
        return self._process.poll() is not None


def _engine_environment(environ: Mapping[str, str]) -> dict[str, str]:
    environment = child_environment(environ)
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", _SPINS)
    return environment


def _close(fd: int | None) -> None:
    if fd is not None:
        with contextlib.suppress(OSError):
            os.close(fd)
