"""A program: the service around an echo engine that takes its time. Prints its port, and whether torch was loaded.

Settings come from the environment, but for the addresses.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
import dataclasses
import os
from pathlib import Path
import sys
from typing import Any

from inference_service.backend.local import LocalBackend
from inference_service.backend.served_model import ServedModel
from inference_service.engine_protocol.messages import ChoiceOutput, EngineRequest
from inference_service.grpc_api import server as app
from inference_service.measures import ChoiceTimings
from inference_service.settings import ServiceSettings
from qwenvl.observability import configure_logging, start_tracing, stop_tracing
from tests.grpc_api.echo_engine import EchoEngine


TIMINGS = ChoiceTimings(queue_s=0.001, prefill_s=0.004, encode_s=0.002)


class SlowEchoEngine(EchoEngine):
    async def generate(
        self, request: EngineRequest, pixels: list[bytes | memoryview], **rest: Any
    ) -> AsyncGenerator[ChoiceOutput, None]:
        timings: ChoiceTimings | None = TIMINGS
        async for output in super().generate(request, pixels, **rest):
            yield dataclasses.replace(output, timings=timings)
            timings = None

    async def _hold(self, index: int, overs: Sequence[asyncio.Event]) -> None:
        await asyncio.sleep(0.005)


class TellingFront(app.Front):
    async def start(self) -> None:
        await super().start()
        sys.stderr.write(f"port {self.ports['grpc']}\n")
        sys.stderr.flush()


async def main() -> int:
    model = ServedModel.load(Path(sys.argv[1]), ("echo",))
    own = {"grpc_address": "127.0.0.1:0", "admin_address": "none"}
    settings = ServiceSettings.load(own, os.environ)
    endpoint = settings.otlp_traces_endpoint
    start_tracing(endpoint, process="inference-service", version="0")
    backend = LocalBackend(settings, model, SlowEchoEngine(model.tokenizer))
    return await app.serve(settings, backend)


if __name__ == "__main__":
    configure_logging(process="inference-service", level="info", log_format="json")
    app.Front = TellingFront  # type: ignore[misc]  # `serve` makes its front itself
    status = asyncio.run(main())
    stop_tracing()
    if "torch" in sys.modules:
        sys.stderr.write("torch loaded\n")
    sys.exit(status)
