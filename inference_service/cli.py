"""The command line `qwenvl` and its subcommands.

Only what handles Ctrl-C is imported with this module: all other imports take a second, in which it may come.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
import os
import sys
from typing import TYPE_CHECKING, Final

from qwenvl.interrupts import INTERRUPTED, ending_at_once
from qwenvl.safe_path import leave_out_working_directory
from qwenvl.standard_streams import complete_standard_streams, silence_grpc


if TYPE_CHECKING:
    import argparse

COMMANDS: Final = ("serve", "chat", "download", "check")
_UNUSABLE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    leave_out_working_directory()
    complete_standard_streams()
    silence_grpc()
    try:
        with ending_at_once():
            from qwenvl.environment import check_variables  # noqa: PLC0415

            words = sys.argv[1:] if argv is None else argv
            flags = vars(build_parser(_asked(words)).parse_args(words))
            for warning in check_variables(os.environ):
                sys.stderr.write(f"{warning}\n")
        del flags["command"]
        status: int = flags.pop("run")(flags)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    return status


def _asked(words: Sequence[str]) -> Sequence[str]:
    """The commands whose modules are needed: each imports a part of a second."""
    return [word for word in words[:1] if word in COMMANDS] or COMMANDS


def build_parser(names: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser of some commands; its namespace has the command's function as `run`."""
    from qwenvl.command_line import CommandParser, add_version  # noqa: PLC0415

    try:
        modules = [import_module(f"inference_service.commands.{name}") for name in names]
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
    for module in modules:
        module.add_parser(commands)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
