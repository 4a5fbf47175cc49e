"""The parser of the programs' command lines: whole flags only, errors in one line, help with examples."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

from qwenvl.environment import closest


EXAMPLES = "examples:\n"
"""The beginning of an epilog whose lines are kept as they are."""


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(EXAMPLES) else super()._fill_text(text, width, indent)


class CommandParser(argparse.ArgumentParser):
    """Refuses abbreviated and unknown flags in one line, with the flag that was probably meant."""

    def __init__(self, **options: Any) -> None:
        chosen: dict[str, Any] = {"allow_abbrev": False, "formatter_class": _Formatter} | options
        super().__init__(**chosen)

    def parse_known_args(  # type: ignore[override]  # as argparse itself calls it
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parses all arguments; none is left over."""
        known, extra = super().parse_known_args(args, namespace)
        if extra:
            self.error(self._unknown(extra[0]))
        return known, []

    def error(self, message: str) -> NoReturn:
        """Ends the program with status 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")

    def _unknown(self, word: str) -> str:
        if not word.startswith("-"):
            return f"unexpected argument {word!r}"
        flag = word.partition("=")[0]
        meant = closest(flag, [name for name in self._option_string_actions if name[:2] == "--"])
        hint = "" if meant is None else f", did you mean {meant}?"
        return f"unknown flag {flag}{hint}"


def add_version(parser: argparse.ArgumentParser) -> None:
    """Adds `--version`."""
    parser.add_argument(
        "--version",
        action="version",
        version=f"{parser.prog} {own_version()}",
        help="print the version and end",
    )


def own_version() -> str:
    """The version of this distribution."""
    try:
        return version("qwen-vl-serving")
    except PackageNotFoundError:
        return "unknown"
