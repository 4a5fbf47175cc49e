"""The engine process: receives commands, runs the engine loop, sends outputs.

Started by `engine_client.child` as `python -m inference_service.engine.process`; it does not outlive the front.

It has two threads. The reader receives commands as they arrive, so that an abort applies before the next step and the
front can always send. The loop runs the core and sends with a blocking `sendall`: the front's event loop always drains
the socket, and if it does not (because it is stopped), the engine waits instead of buffering without bound. There is
no deadlock, since the reader never waits for the loop.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Callable, Iterator, Sequence
import ctypes
import faulthandler
import logging
import os
import queue
import resource
import signal
import socket
import sys
import threading
import time
from typing import Final, Protocol, get_args

from inference_service.engine_protocol import wire
from inference_service.engine_protocol.messages import (
    ChoiceOutput,
    EngineConfig,
    EngineFailure,
    EngineReady,
    EngineRequest,
    EngineStats,
    FinishReason,
)
from inference_service.errors import InternalError, ServiceError
from qwenvl.observability import LogFormat, LogLevel, configure_logging


HEARTBEAT_S: Final = 0.25
_PR_SET_PDEATHSIG: Final = 1
_MAX_DESCRIPTORS: Final = 65536

logger = logging.getLogger("inference_service.engine.process")  # also where this is `__main__`


class Core(Protocol):
    """The interface of `engine.core.EngineCore` for the loop; tests use a fake."""

    @property
    def ready(self) -> EngineReady:
        """The loaded engine."""

    @property
    def stats(self) -> EngineStats:
        """The current counters."""

    @property
    def has_work(self) -> bool:
        """Whether any choice is unfinished."""

    def add(self, request: EngineRequest, pixels: memoryview | bytes) -> None:
        """Queues all choices of a request; if it is refused, none of them.

        Raises:
            ServiceError: This request cannot run.
        """

    def abort(self, request_id: str, choice_index: int | None = None) -> None:
        """Drops one choice of a request, or (None) all, and frees their memory; unknown ids are ignored."""

    def step(self) -> list[ChoiceOutput]:
        """Computes one batch."""


CoreFactory = Callable[[EngineConfig], Core]


class Inbox(Protocol):
    """The source of commands for the loop."""

    def take(self, timeout_s: float) -> Iterator[tuple[wire.Command, memoryview]]:
        """Yields all pending commands; waits up to `timeout_s` for the first one."""


class EngineLoop:
    """The engine loop: applies commands, steps the core and sends outputs, one turn at a time.

    The front always gets exactly one finish for every choice of every request that it added: the loop tracks
    unfinished choices, finishes aborted ones itself and drops later outputs of the core for them.
    """

    def __init__(self, core: Core, inbox: Inbox, send: Callable[[wire.Event], None]) -> None:
        self._core = core
        self._inbox = inbox
        self._send = send
        self._live: dict[str, set[int]] = {}  # request id -> choices that have not finished
        self._turns = 0
        self._last_heartbeat = 0.0

    def turn(self) -> None:
        """Applies commands, runs one step if there is work, sends outputs and, when due, a heartbeat.

        Exceptions of `Core.step` are not caught: the state of the core is then unknown, and the front starts a new
        process.
        """
        outputs: list[ChoiceOutput] = []
        for command, pixels in self._inbox.take(0.0 if self._core.has_work else HEARTBEAT_S):
            outputs.extend(self._apply(command, pixels))
        if self._core.has_work:
            outputs.extend(self._core.step())
        finished = self._publish(outputs)
        self._turns += 1
        now = time.monotonic()
        if finished or now - self._last_heartbeat >= HEARTBEAT_S:
            self._last_heartbeat = now
            self._send(wire.Heartbeat(self._core.stats, self._turns))

    def _apply(self, command: wire.Command, pixels: memoryview) -> list[ChoiceOutput]:
        """Applies a command to the core and returns its immediate outputs."""
        match command:
            case wire.Add(request=request):
                self._live[request.request_id] = set(range(request.num_choices))
                return self._add(request, pixels)
            case wire.Abort(request_id=request_id, choice_index=choice_index):
                return self._abort(request_id, choice_index)
            case wire.Start():
                raise wire.WireError("the engine is started already")

    def _add(self, request: EngineRequest, pixels: memoryview) -> list[ChoiceOutput]:
        try:
            self._core.add(request, pixels)
        except ServiceError as error:
            failure = EngineFailure.of(error)
        except Exception:
            # A defect with one request must not end the others.
            logger.exception(
                {"message": "a request could not be added", "request_id": request.request_id}
            )
            self._core.abort(request.request_id)
            failure = _DEFECT
        else:
            return []
        return [
            _failed(request.request_id, choice_index, failure)
            for choice_index in range(request.num_choices)
        ]

    def _abort(self, request_id: str, choice_index: int | None) -> list[ChoiceOutput]:
        """Aborts unfinished choices; those that have finished in the meantime are ignored."""
        live = sorted(self._live.get(request_id, ()))
        ended = [index for index in live if choice_index in (None, index)]
        for index in ended:
            self._core.abort(request_id, index)
        return [ChoiceOutput.aborted(request_id, index) for index in ended]

    def _publish(self, outputs: list[ChoiceOutput]) -> bool:
        """Sends the outputs of unfinished choices; returns whether one of them finished."""
        batch: list[ChoiceOutput] = []
        finished = False
        for output in outputs:
            if output.choice_index not in self._live.get(output.request_id, ()):
                continue
            batch.append(output)
            if output.finish_reason is not None:
                self._forget(output)
                finished = True
        if batch:
            try:
                self._send(wire.Outputs(tuple(batch)))
            except wire.WireError:
                self._publish_singly(batch)
                return True
        return finished

    def _publish_singly(self, batch: list[ChoiceOutput]) -> None:
        """Sends the outputs of a batch that exceeds one frame; an output that exceeds it alone fails its choice."""
        for output in batch:
            try:
                self._send(wire.Outputs((output,)))
            except wire.WireError:
                logger.exception(
                    {"message": "an output is too long", "request_id": output.request_id}
                )
                self._core.abort(output.request_id, output.choice_index)
                self._forget(output)
                failed = _failed(output.request_id, output.choice_index, _DEFECT)
                self._send(wire.Outputs((failed,)))

    def _forget(self, output: ChoiceOutput) -> None:
        """Removes the choice of this output from the unfinished ones."""
        live = self._live.get(output.request_id, set())
        live.discard(output.choice_index)
        if not live:
            self._live.pop(output.request_id, None)


_DEFECT: Final = EngineFailure.of(InternalError("The engine failed on this request."))


def _failed(request_id: str, choice_index: int, failure: EngineFailure) -> ChoiceOutput:
    return ChoiceOutput(
        request_id=request_id,
        choice_index=choice_index,
        finish_reason=FinishReason.ERROR,
        failure=failure,
    )


class SocketInbox:
    """Commands from the front, received by a thread. The process ends when the front closes the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._queue: queue.SimpleQueue[tuple[wire.Command, memoryview]] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    def take(self, timeout_s: float | None) -> Iterator[tuple[wire.Command, memoryview]]:
        """Yields all pending commands; waits up to `timeout_s` (None = for ever) for the first one."""
        try:
            if timeout_s == 0.0:
                yield self._queue.get_nowait()
            else:
                yield self._queue.get(timeout=timeout_s)
            while True:
                yield self._queue.get_nowait()
        except queue.Empty:
            return

    def _read(self) -> None:
        reader = wire.command_reader()
        fds: deque[int] = deque()
        try:
            while True:
                data, received, _, _ = socket.recv_fds(
                    self._sock, wire.READ_BYTES, 16, socket.MSG_CMSG_CLOEXEC
                )
                if not data:
                    break
                fds.extend(received)
                for command in reader.feed(data):
                    self._queue.put((command, _pixels_of(command, fds)))
        except ConnectionResetError:
            pass
        except Exception:
            logger.exception("reading commands failed")
            os._exit(1)
        # The front has ended or closed the connection: nothing needs to be finished or cleaned up. Exiting from this
        # thread also works in the middle of a step.
        os._exit(0)


def _pixels_of(command: wire.Command, fds: deque[int]) -> memoryview:
    if not isinstance(command, wire.Add) or command.pixel_bytes == 0:
        return memoryview(b"")
    if not fds:
        raise wire.WireError("pixels were announced, but no memfd was received")
    return wire.map_pixels(fds.popleft(), command.pixel_bytes)


def load_core(config: EngineConfig) -> Core:
    """Loads the model; imports torch."""
    from inference_service.engine.core import EngineCore  # noqa: PLC0415 - seconds and gigabytes

    return EngineCore(config)


def serve(fd: int, core_factory: CoreFactory = load_core) -> int:
    """Serves the front at the other end of the socket `fd` until it closes it.

    Returns:
        Exit status: 1 = the model could not be loaded. After loading, this does not return: the reader thread exits the
        process when the front has ended, and exceptions of the core propagate.
    """
    sock = socket.socket(fileno=fd)
    inbox = SocketInbox(sock)

    def send(event: wire.Event) -> None:
        sock.sendall(wire.encode(event))

    start, _ = next(inbox.take(None))
    if not isinstance(start, wire.Start):
        raise wire.WireError("the first message must be Start")
    try:
        core = core_factory(start.config)
    except Exception as error:
        # Errors that the operator can correct are ValueErrors with a clear message: no traceback.
        logger.exception("the model cannot be loaded", exc_info=not isinstance(error, ValueError))
        send(wire.LoadFailed(f"{type(error).__name__}: {error}"))
        return 1
    send(wire.Loaded(core.ready))
    loop = EngineLoop(core, inbox, send)
    while True:
        loop.turn()


def die_with(parent: int) -> None:
    """Ends this process when the thread in `parent` that started it ends. Linux only."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # the parent ended before the call above
        os._exit(0)


def _raise_descriptor_limit() -> None:
    """Raises the limit of open files: every request with images holds a descriptor (CPython duplicates it)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main(argv: Sequence[str] | None = None, core_factory: CoreFactory = load_core) -> int:
    """Entry point of the process.

    Args:
        argv: Arguments without the program name; None = those of the process.
        core_factory: Creates the core.
    """
    parser = argparse.ArgumentParser(prog="inference_service.engine.process")
    parser.add_argument("--fd", type=int, required=True, help="socket to the front")
    parser.add_argument("--parent", type=int, required=True, help="process id of the front")
    parser.add_argument("--log-level", choices=get_args(LogLevel), default="info")
    parser.add_argument("--log-format", choices=get_args(LogFormat), default=None)
    args = parser.parse_args(argv)
    die_with(args.parent)
    # The front decides when the engine ends: Ctrl-C or SIGTERM for the whole process group must not interrupt requests
    # that the front is draining.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.set_inheritable(args.fd, False)  # a compiler started by triton must not keep the socket open
    _raise_descriptor_limit()
    faulthandler.enable()
    configure_logging(process="engine", level=args.log_level, log_format=args.log_format)
    try:
        return serve(args.fd, core_factory)
    except BrokenPipeError:
        return 0
    except Exception:
        logger.exception("the engine failed")
        # Exit at once: cleaning up a broken device context may hang, and the front waits until the socket closes.
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
