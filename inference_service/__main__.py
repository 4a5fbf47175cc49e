"""The command `inference-service`; see `inference_service.front`."""

from __future__ import annotations

from collections.abc import Sequence

from qwenvl.interrupts import ending_at_once
from qwenvl.safe_path import leave_out_working_directory
from qwenvl.standard_streams import complete_standard_streams, silence_grpc


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the service until it is stopped; returns the exit status."""
    leave_out_working_directory()
    complete_standard_streams()
    silence_grpc()
    with ending_at_once():
        from inference_service.front import main as run  # noqa: PLC0415 - imports for a second

        return run(argv)


if __name__ == "__main__":
    raise SystemExit(main())
