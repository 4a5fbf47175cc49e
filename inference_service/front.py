"""The gRPC front as a program: settings, logs and model are checked, then the engine process and the servers start.

The engine process spends most of a start on imports. So it is started before this process imports anything large.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import logging
import os
from typing import Final

from inference_service.any_model.choice import BackendKind, choose_backend
from inference_service.engine_client.child import (
    DEFAULT_COMMAND,
    TRANSFORMERS_COMMAND,
    EngineProcess,
)
from inference_service.hub.resolve import ModelNotFound, resolve_model
from inference_service.media.policy import FetchPolicy
from inference_service.settings import ServiceSettings
from qwenvl import launcher
from qwenvl.command_line import CommandParser, add_version
from qwenvl.environment import check_variables
from qwenvl.observability import configure_logging


logger = logging.getLogger(__name__)

_COMMANDS: Final = {
    BackendKind.NATIVE: DEFAULT_COMMAND,
    BackendKind.TRANSFORMERS: TRANSFORMERS_COMMAND,
}


def main(argv: Sequence[str] | None = None, engine: EngineProcess | None = None) -> int:
    """Runs the service until it is stopped; returns the exit status.

    Args:
        argv: Flags; None = those of the process.
        engine: A process of this project's engine, if one runs already.
    """
    parser = CommandParser(prog="inference-service", description="Serve a Qwen-VL model over gRPC.")
    add_version(parser)
    parser.add_argument(launcher.FLAG, type=int, help=argparse.SUPPRESS)
    ServiceSettings.add_flags(parser)
    flags = vars(parser.parse_args(argv))
    warnings = check_variables(os.environ)
    settings = ServiceSettings.load(flags, os.environ)
    settings.check_files()
    configure_logging(
        process="inference-service", level=settings.log_level, log_format=settings.log_format
    )
    for warning in warnings:
        logger.warning(warning)
    try:
        FetchPolicy.from_settings(settings)
    except ValueError as error:
        raise SystemExit(f"invalid settings: {error}") from None
    try:
        resolved = resolve_model(
            settings.model,
            settings.served_model_name,
            hub=settings.hub,
            revision=settings.revision,
        )
        kind = choose_backend(settings.backend, resolved.directory)
    except (ModelNotFound, ValueError, OSError) as error:
        raise SystemExit(f"cannot serve this model: {error}") from None
    command = _COMMANDS[kind]
    if kind is not BackendKind.NATIVE:
        if engine is not None:
            engine.end()
        engine = EngineProcess.start_early(command)
    try:
        from inference_service.serving import run  # noqa: PLC0415 - the engine process imports meanwhile

        if not launcher.Launched(flags["launcher_fd"]).wait():
            return 0
        return run(settings, resolved, kind, command, engine)
    finally:
        if engine is not None:
            engine.end()
