"""The command `inference-service`; see `inference_service.front`."""

from __future__ import annotations

from collections.abc import Sequence
import sys
from typing import TYPE_CHECKING, Final

from qwenvl.interrupts import ending_at_once
from qwenvl.safe_path import leave_out_working_directory
from qwenvl.standard_streams import complete_standard_streams, silence_grpc


if TYPE_CHECKING:
    from inference_service.engine_client.child import EngineProcess

_ANSWERED: Final = frozenset({"-h", "--help", "--version"})
"""Flags that are answered without a model."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the service until it is stopped; returns the exit status."""
    leave_out_working_directory()
    complete_standard_streams()
    silence_grpc()
    words = sys.argv[1:] if argv is None else argv
    with ending_at_once():
        engine = None if _ANSWERED & set(words) else _early_engine()
        try:
            from inference_service.front import main as run  # noqa: PLC0415 - imports for a second

            return run(words, engine)
        finally:
            if engine is not None:
                engine.end()


def _early_engine() -> EngineProcess | None:
    """The engine process; it imports torch, for seconds, while this one reads its settings."""
    from inference_service.engine_client.child import (  # noqa: PLC0415
        DEFAULT_COMMAND,
        EngineProcess,
    )

    return EngineProcess.start_early(DEFAULT_COMMAND)


if __name__ == "__main__":
    raise SystemExit(main())
