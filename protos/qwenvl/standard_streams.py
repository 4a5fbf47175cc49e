"""The standard streams of a process: completes those that it was started without, as by `2>&-`, and keeps them clean.

Imports nothing but what Python has loaded itself.
"""

from __future__ import annotations

import os
import sys


def complete_standard_streams() -> None:
    """Opens `/dev/null` for each missing one of the descriptors 0, 1 and 2.

    Otherwise the next socket or file gets its number: what is printed goes into it, and child processes inherit it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
            os.set_inheritable(descriptor, True)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - as long as the process
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def silence_grpc() -> None:
    """Keeps gRPC's C core from standard error, before gRPC is imported; `GRPC_VERBOSITY` lets it speak.

    Its lines have a format of their own, and what they tell is in the errors of calls and servers.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
