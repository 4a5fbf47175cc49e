"""The script `qwenvl`: runs the commands of the server's distribution, or says how to install it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points, version
import sys
from typing import Final


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
    arguments = sys.argv[1:] if arguments is None else arguments
    missing = "qwen-vl-serving"
    for entry in entry_points(group=_GROUP):
        try:
            command_line = entry.load()
        except ModuleNotFoundError as error:
            missing = error.name or missing
        else:
            status: int = command_line(arguments)
            return status
    own = f"qwenvl-client {version('qwenvl-client')}"
    if "--version" in arguments:
        print(own)  # noqa: T201 - a command prints
        return 0
    print(_HELP.format(own=own, missing=missing), file=sys.stderr)  # noqa: T201
    return _UNUSABLE


if __name__ == "__main__":
    raise SystemExit(main())
