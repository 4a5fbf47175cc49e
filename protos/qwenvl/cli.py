"""The script `qwenvl`: runs the commands of the server's distribution, or says how to install it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import sys
from typing import Final

from qwenvl.interrupts import ending_at_once
from qwenvl.safe_path import leave_out_working_directory
from qwenvl.standard_streams import complete_standard_streams


_GROUP: Final = "qwenvl.cli"
_UNUSABLE: Final = 2
_HELP: Final = """\
{own} is the client alone: serve, chat, download and check are commands of the server's distribution
({missing} is not installed). Install it with: pip install 'qwen-vl-serving[all]'
To ask a running service from Python: from qwenvl import Client"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status.

    Args:
        arguments: Without the program's name; None = those of the process.
    """
    leave_out_working_directory()
    complete_standard_streams()
    arguments = sys.argv[1:] if arguments is None else arguments
    with ending_at_once():
        found = _command_line()
    if callable(found):
        return found(arguments)
    from importlib.metadata import version  # noqa: PLC0415

    own = f"qwenvl-client {version('qwenvl-client')}"
    if "--version" in arguments:
        print(own)  # noqa: T201 - a command prints
        return 0
    print(_HELP.format(own=own, missing=found), file=sys.stderr)  # noqa: T201
    return _UNUSABLE


def _command_line() -> Callable[[Sequence[str]], int] | str:
    """The command line of the server's distribution, or the name of the package that is missing."""
    # Not before Ctrl-C is handled: this import takes a while.
    from importlib.metadata import entry_points  # noqa: PLC0415

    missing = "qwen-vl-serving"
    for entry in entry_points(group=_GROUP):
        try:
            command_line: Callable[[Sequence[str]], int] = entry.load()
        except ModuleNotFoundError as error:
            missing = error.name or missing
        else:
            return command_line
    return missing


if __name__ == "__main__":
    raise SystemExit(main())
