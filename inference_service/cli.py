"""The command line `qwenvl` and its subcommands.

Only what handles Ctrl-C is imported with this module: all other imports take a second, in which it may come.
"""

from __future__ import annotations

from collections.abc import Sequence
import os
import sys
from typing import TYPE_CHECKING

from qwenvl.interrupts import INTERRUPTED, ending_at_once
from qwenvl.safe_path import leave_out_working_directory
from qwenvl.standard_streams import complete_standard_streams, silence_grpc


if TYPE_CHECKING:
    import argparse

_UNUSABLE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    leave_out_working_directory()
    complete_standard_streams()
    silence_grpc()
    try:
        with ending_at_once():
            from qwenvl.environment import check_variables  # noqa: PLC0415

            flags = vars(build_parser().parse_args(argv))
            for warning in check_variables(os.environ):
                sys.stderr.write(f"{warning}\n")
        del flags["command"]
        status: int = flags.pop("run")(flags)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    return status


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; its namespace has the command's function as `run`."""
    from qwenvl.command_line import CommandParser, add_version  # noqa: PLC0415

    try:
        from inference_service.commands import chat, check, download, serve  # noqa: PLC0415
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"{error.name} is not installed; qwenvl needs: pip install 'qwen-vl-serving[all]'\n"
        )
        raise SystemExit(_UNUSABLE) from None
    parser = CommandParser(
        prog="qwenvl",
        description="Download, check, serve and query vision-language models of the Qwen-VL family.",
    )
    add_version(parser)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (serve, chat, download, check):
        command.add_parser(commands)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
