"""The engine process: receives commands, runs the engine loop, sends outputs.

Started by `engine_client.child` as `python -P -m inference_service.engine.process`; it does not outlive the front.

It has three threads. The reader receives commands as they arrive, so that an abort applies before the next step and
the front can always send. The pulse tells the front every second that the process is alive and how far it has come, so
that a long step is not taken for one that hangs. The loop runs the core and sends with a blocking `sendall`: the
front's event loop always drains the socket, and if it does not (because it is stopped), the engine waits instead of
buffering without bound. There is no deadlock, since the reader never waits for the others.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Callable, Iterator, Sequence
import contextlib
import faulthandler
import logging
import os
import queue
import socket
import sys
import threading
from typing import Final

from inference_service.child import die_with
from inference_service.engine.failures import DeviceLostError
from inference_service.engine.loop import Core, EngineLoop
from inference_service.engine_protocol import wire
from inference_service.engine_protocol.messages import EngineConfig
from inference_service.progress import progress
from qwenvl.descriptors import raise_descriptor_limit
from qwenvl.observability import configure_logging


_MAX_DESCRIPTORS: Final = 65536
PULSE_S: Final = 1.0

logger = logging.getLogger("inference_service.engine.process")  # also where this is `__main__`


CoreFactory = Callable[[EngineConfig], Core]


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
    if not isinstance(command, wire.Add | wire.Prepare) or command.pixel_bytes == 0:
        return memoryview(b"")
    if not fds:
        raise wire.WireError("pixels were announced, but no memfd was received")
    return wire.map_pixels(fds.popleft(), command.pixel_bytes)


def import_core() -> None:
    """Imports what `load_core` needs, before the front has said what to load."""
    with contextlib.suppress(Exception):  # `load_core` fails again, and that is reported
        import inference_service.engine.core  # noqa: F401, PLC0415 - seconds and gigabytes


def load_core(config: EngineConfig) -> Core:
    """Loads the model; imports torch."""
    from inference_service.engine.core import EngineCore  # noqa: PLC0415 - imports torch

    return EngineCore(config)


def serve(
    fd: int, core_factory: CoreFactory = load_core, prepare: Callable[[], None] | None = None
) -> int:
    """Serves the front at the other end of the socket `fd` until it closes it.

    Args:
        fd: The socket.
        core_factory: Creates the core.
        prepare: What to do while the front gets ready to say what to load.

    Returns:
        Exit status: 1 = the model could not be loaded. After loading, this does not return: the reader thread exits the
        process when the front has ended, and exceptions of the core propagate.
    """
    sock = socket.socket(fileno=fd)
    inbox = SocketInbox(sock)

    sending = threading.Lock()

    def send(event: wire.Event) -> None:
        frame = wire.encode(event)
        with sending:
            sock.sendall(frame)

    if prepare is not None:
        prepare()
    start, _ = next(inbox.take(None))
    if not isinstance(start, wire.Start):
        raise wire.WireError("the first message must be Start")
    config = start.config
    configure_logging(process="engine", level=config.log_level, log_format=config.log_format)
    try:
        core = core_factory(config)
    except DeviceLostError:
        raise  # the front starts another process, which does without what has failed
    except Exception as error:
        # Errors that the operator can correct are ValueErrors with a clear message: no traceback.
        logger.exception("the model cannot be loaded", exc_info=not isinstance(error, ValueError))
        send(wire.LoadFailed(f"{type(error).__name__}: {error}"))
        return 1
    send(wire.Loaded(core.ready))
    threading.Thread(target=_beat, args=(send,), name="pulse", daemon=True).start()
    loop = EngineLoop(core, inbox, send)
    while True:
        loop.turn()


def _beat(send: Callable[[wire.Event], None]) -> None:
    """Sends a pulse every second, until the front has ended."""
    never = threading.Event()
    try:
        while not never.wait(PULSE_S):
            send(wire.Pulse(progress()))
    except OSError:
        return  # the reader ends the process


def main(
    argv: Sequence[str] | None = None,
    core_factory: CoreFactory = load_core,
    prepare: Callable[[], None] | None = None,
) -> int:
    """Entry point of the process.

    Args:
        argv: Arguments without the program name; None = those of the process.
        core_factory: Creates the core.
        prepare: See `serve`.
    """
    parser = argparse.ArgumentParser(prog="inference_service.engine.process")
    parser.add_argument("--fd", type=int, required=True, help="socket to the front")
    parser.add_argument("--parent", type=int, required=True, help="process id of the front")
    args = parser.parse_args(argv)
    die_with(args.parent)
    os.set_inheritable(args.fd, False)  # a compiler started by triton must not keep the socket open
    raise_descriptor_limit(_MAX_DESCRIPTORS)  # every request with images holds some
    faulthandler.enable()
    configure_logging(process="engine", level="info", log_format=None)
    try:
        return serve(args.fd, core_factory, prepare)
    except BrokenPipeError:
        return 0
    except Exception:
        logger.exception("the engine failed")
        # Exit at once: cleaning up a broken device context may hang, and the front waits until the socket closes.
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main(prepare=import_core))
