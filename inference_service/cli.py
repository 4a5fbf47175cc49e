"""The command line `qwenvl` and its subcommands."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from inference_service.commands import INTERRUPTED, chat, check, download, serve


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    flags = vars(build_parser().parse_args(argv))
    del flags["command"]
    try:
        status: int = flags.pop("run")(flags)
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; its namespace has the command's function as `run`."""
    parser = argparse.ArgumentParser(
        prog="qwenvl",
        description="Download, check, serve and query vision-language models of the Qwen-VL family.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (serve, chat, download, check):
        command.add_parser(commands)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
