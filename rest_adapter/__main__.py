"""The command `rest-adapter`: flags and settings; see `rest_adapter.server`.

Only what handles Ctrl-C is imported with this module: all other imports take a second, in which it may come.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
import os
import sys

from qwenvl.interrupts import ending_at_once
from qwenvl.safe_path import leave_out_working_directory
from qwenvl.standard_streams import complete_standard_streams, silence_grpc


def _not_installed(name: str | None) -> SystemExit:
    return SystemExit(
        f"{name} is not installed; rest-adapter needs: pip install 'qwen-vl-serving[adapter]'"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT; running streams are finished first.

    Args:
        argv: Flags; None = those of the process.

    Returns:
        The exit status.
    """
    leave_out_working_directory()
    complete_standard_streams()
    silence_grpc()
    with ending_at_once():
        import argparse  # noqa: PLC0415

        from qwenvl import launcher  # noqa: PLC0415
        from qwenvl.command_line import CommandParser, add_version  # noqa: PLC0415
        from qwenvl.environment import check_variables  # noqa: PLC0415

        try:
            from rest_adapter.settings import AdapterSettings  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise _not_installed(error.name) from None
        if find_spec("uvicorn") is None:  # imported later: a check of the settings does without
            raise _not_installed("uvicorn")
        parser = CommandParser(
            prog="rest-adapter", description="OpenAI-compatible REST API of an inference-service."
        )
        add_version(parser)
        parser.add_argument(
            "--check-settings", action="store_true", help="check the settings and end"
        )
        parser.add_argument(launcher.FLAG, type=int, help=argparse.SUPPRESS)
        AdapterSettings.add_flags(parser)
        flags = vars(parser.parse_args(argv))
        warnings = check_variables(os.environ)
        settings = AdapterSettings.load(flags, os.environ)
        settings.check_files()
        if flags["check_settings"]:
            return 0
        launched = launcher.Launched(flags["launcher_fd"])
        launched.tell()

        from rest_adapter.server import serve  # noqa: PLC0415

        if not launched.wait():
            return 0
        return serve(settings, warnings)


if __name__ == "__main__":
    sys.exit(main())
