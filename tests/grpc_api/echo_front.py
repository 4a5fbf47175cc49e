"""A program: the service around an echo engine that takes its time. Prints its port, and whether torch was loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
import sys

from inference_service.backend.local import LocalBackend
from inference_service.backend.served_model import ServedModel
from inference_service.grpc_api import server as app
from inference_service.settings import ServiceSettings
from qwenvl.observability import configure_logging
from tests.grpc_api.echo_engine import EchoEngine


class SlowEchoEngine(EchoEngine):
    async def _hold(self, index: int, overs: Sequence[asyncio.Event]) -> None:
        await asyncio.sleep(0.005)


class TellingFront(app.Front):
    async def start(self) -> None:
        await super().start()
        sys.stderr.write(f"port {self.ports['grpc']}\n")
        sys.stderr.flush()


async def main() -> int:
    model = ServedModel.load(Path(sys.argv[1]), ("echo",))
    settings = ServiceSettings(grpc_address="127.0.0.1:0", admin_address=None)
    backend = LocalBackend(settings, model, SlowEchoEngine(model.tokenizer))
    return await app.serve(settings, backend)


if __name__ == "__main__":
    configure_logging(process="inference-service", level="info", log_format="json")
    app.Front = TellingFront  # type: ignore[misc]  # `serve` makes its front itself
    status = asyncio.run(main())
    if "torch" in sys.modules:
        sys.stderr.write("torch loaded\n")
    sys.exit(status)
