"""A program that is started before it may serve: it checks its settings, imports, and waits for leave.

So `qwenvl serve` can check what it serves while the programs that serve it are imported, and nothing opens before it is
known to work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import contextlib
import socket
import subprocess
from typing import Final


FLAG: Final = "--launcher-fd"
"""Of the program: its end of a socket; without it, it serves at once."""
_SIGN: Final = b"\n"


class Launched:
    """The end of the program.

    Args:
        fd: The value of the flag.
    """

    def __init__(self, fd: int | None) -> None:
        self._socket = None if fd is None else socket.socket(fileno=fd)

    def tell(self) -> None:
        """Tells the launcher that the settings are valid, if it still waits for that."""
        if self._socket is not None:
            with contextlib.suppress(ConnectionError):
                self._socket.sendall(_SIGN)

    def wait(self) -> bool:
        """Waits for leave to serve; False = the launcher has ended, or wants the program no more."""
        if self._socket is None:
            return True
        with self._socket as leave:
            try:
                return leave.recv(1) == _SIGN
            except ConnectionError:  # it has ended without having heard that the settings are valid
                return False


class Held:
    """A program that was started and waits for leave.

    Attributes:
        process: The program; its messages go where those of this process go.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        in_child: Callable[[], None] | None = None,
    ) -> None:
        """Starts the program in a session of its own: Ctrl-C in a terminal reaches this process only.

        Args:
            command: Program and arguments; the flag is appended.
            environment: Its environment.
            in_child: Called in it before it runs.

        Raises:
            OSError: It cannot be started.
        """
        self._is_valid = self._is_released = False
        self._socket, theirs = socket.socketpair()
        with theirs:
            try:
                self.process = subprocess.Popen(  # noqa: S603 - programs of this distribution
                    [*command, FLAG, str(theirs.fileno())],
                    env=environment,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                    preexec_fn=in_child,  # noqa: PLW1509 - no threads here
                )
            except OSError:
                self._socket.close()
                raise

    def is_valid(self) -> bool:
        """Waits until the program has checked its settings; False = they are wrong, which it has said, and it ends."""
        if not self._is_valid:
            self._is_valid = self._socket.recv(1) == _SIGN
        return self._is_valid

    def release(self) -> None:
        """Lets it serve, if it has not ended meanwhile."""
        self._is_released = True
        with self._socket as leave, contextlib.suppress(ConnectionError):
            leave.sendall(_SIGN)

    def close(self) -> None:
        """Ends it at once, unless it was released."""
        self._socket.close()
        if not self._is_released:
            self.process.kill()
            self.process.wait()
