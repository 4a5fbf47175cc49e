"""The engine process: receives commands, runs the engine loop, sends outputs.

Started by `engine_client.child` as `python -m inference_service.engine.process`; it does not outlive the front.

Two threads. A reader takes commands off the socket as they come, so that an abort applies before the next step
and the front can always send. The loop steps the core and sends with a blocking `sendall`: the front's event loop
always drains the socket into memory, and a front that does not (because it is stopped) is a reason to wait, not to
buffer without bound; no deadlock is possible, since the reader never waits for the loop. A writer thread would add
a queue and a bound and gain nothing.
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
    """What the loop needs of `engine.core.EngineCore`; tests put a fake one here."""

    @property
    def ready(self) -> EngineReady:
        """What was loaded."""

    @property
    def stats(self) -> EngineStats:
        """Counters of now."""

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""

    def add(self, request: EngineRequest, pixels: memoryview | bytes) -> None:
        """Queues all choices of a request, or none.

        Raises:
            ServiceError: This request cannot run.
        """

    def abort(self, request_id: str, choice_index: int | None = None) -> None:
        """Drops one choice of a request, or (None) all, and frees what they hold; unknown ids are ignored."""

    def step(self) -> list[ChoiceOutput]:
        """Computes one batch."""


CoreFactory = Callable[[EngineConfig], Core]


class Inbox(Protocol):
    """Where the loop finds its commands."""

    def take(self, timeout_s: float) -> Iterator[tuple[wire.Command, memoryview]]:
        """Yields all commands that are there; waits up to `timeout_s` for the first one."""


class EngineLoop:
    """Applies commands, steps the core and sends outputs, one turn at a time.

    Whatever the core does, the front reads exactly one finish for every choice of every request it added: the loop
    keeps the live ones, finishes aborted choices itself and drops what the core still says about them.
    """

    def __init__(self, core: Core, inbox: Inbox, send: Callable[[wire.Event], None]) -> None:
        self._core = core
        self._inbox = inbox
        self._send = send
        self._live: dict[str, set[int]] = {}  # request id -> choices that have not finished
        self._turns = 0
        self._last_heartbeat = 0.0

    def turn(self) -> None:
        """Drains the commands, makes one step if there is work, sends outputs and, when it is time, a heartbeat.

        An exception of `Core.step` is not caught: the state of the core is unknown then, and the front starts a
        fresh process.
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
        """Gives a command to the core and returns the outputs that it makes at once."""
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
            # A request that trips a defect must not take the others with it.
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
        """Choices that ended while the abort was on its way are left alone."""
        live = sorted(self._live.get(request_id, ()))
        ended = [index for index in live if choice_index in (None, index)]
        for index in ended:
            self._core.abort(request_id, index)
        return [
            ChoiceOutput(
                request_id=request_id, choice_index=index, finish_reason=FinishReason.ABORTED
            )
            for index in ended
        ]

    def _publish(self, outputs: list[ChoiceOutput]) -> bool:
        """Sends the outputs of live choices and tells whether one of them ended."""
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
        """Sends a batch that is too long for one frame; a single output that is too long fails its choice."""
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
        """The choice of this output has ended."""
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
        """Yields all commands that are there; waits up to `timeout_s` (None = for ever) for the first one."""
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
            logger.exception("the stream of commands is broken")
            os._exit(1)
        # The front is gone or wants us gone: nothing is worth finishing, and nothing needs to be cleaned up. Leaving
        # from here works in the middle of a step too.
        os._exit(0)


def _pixels_of(command: wire.Command, fds: deque[int]) -> memoryview:
    if not isinstance(command, wire.Add) or command.pixel_bytes == 0:
        return memoryview(b"")
    if not fds:
        raise wire.WireError("pixels were announced but no memfd came")
    return wire.map_pixels(fds.popleft(), command.pixel_bytes)


def load_core(config: EngineConfig) -> Core:
    """Loads the model. Only here torch is imported."""
    from inference_service.engine.core import EngineCore  # noqa: PLC0415 - seconds and gigabytes

    return EngineCore(config)


def serve(fd: int, core_factory: CoreFactory = load_core) -> int:
    """Serves the front at the other end of the socket `fd` until it closes it.

    Returns:
        Exit status: 1 = the model could not be loaded. While requests are served the process ends by other ways:
        the reader thread leaves when the front is gone, an exception of the core propagates.
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
        # What is the operator's to mend is a ValueError whose text says how: no traceback.
        logger.exception("the model cannot be loaded", exc_info=not isinstance(error, ValueError))
        send(wire.LoadFailed(f"{type(error).__name__}: {error}"))
        return 1
    send(wire.Loaded(core.ready))
    loop = EngineLoop(core, inbox, send)
    while True:
        loop.turn()


def die_with(parent: int) -> None:
    """Ties the life of this process to the thread that started it, in `parent`. Linux only."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the call above
        os._exit(0)


def _raise_descriptor_limit() -> None:
    """A mapped memfd holds a descriptor (CPython duplicates it): one for every request with images."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main(argv: Sequence[str] | None = None, core_factory: CoreFactory = load_core) -> int:
    """Entry point of the process.

    Args:
        argv: Arguments without the program name; None = those of the process.
        core_factory: Makes the core.
    """
    parser = argparse.ArgumentParser(prog="inference_service.engine.process")
    parser.add_argument("--fd", type=int, required=True, help="socket to the front")
    parser.add_argument("--parent", type=int, required=True, help="process id of the front")
    parser.add_argument("--log-level", choices=get_args(LogLevel), default="info")
    parser.add_argument("--log-format", choices=get_args(LogFormat), default=None)
    args = parser.parse_args(argv)
    die_with(args.parent)
    # The front decides when the engine ends: a Ctrl-C or SIGTERM to the whole process group must not cut off the
    # requests that the front is draining.
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
        logger.exception("the engine cannot go on")
        # Leave at once: teardown of a broken device context may hang, and until the socket closes the front waits.
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
