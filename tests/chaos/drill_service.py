"""A program: the service as its manifest sets it, around an echo engine that answers ten tokens a second.

Prints `began ID` for every request that reaches the engine. Settings come from the environment, as in a pod.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
import os
from pathlib import Path
import sys
from typing import Any

from inference_service.backend.local import LocalBackend
from inference_service.backend.served_model import ServedModel
from inference_service.engine_protocol.messages import ChoiceOutput, EngineRequest
from inference_service.grpc_api.server import serve
from inference_service.settings import ServiceSettings
from qwenvl.observability import configure_logging
from tests.grpc_api.echo_engine import EchoEngine


TOKENS_PER_S = 10


class SlowEngine(EchoEngine):
    """Takes its time, and tells what it computes."""

    async def generate(
        self, request: EngineRequest, pixels: list[bytes | memoryview], **rest: Any
    ) -> AsyncGenerator[ChoiceOutput, None]:
        sys.stdout.write(f"began {request.request_id}\n")
        sys.stdout.flush()
        async for output in super().generate(request, pixels, **rest):
            yield output

    async def _hold(self, index: int, overs: Sequence[asyncio.Event]) -> None:
        await asyncio.sleep(1 / TOKENS_PER_S)


async def main() -> int:
    settings = ServiceSettings.load({}, os.environ)
    model = ServedModel.load(Path(sys.argv[1]), settings.served_model_name)
    backend = LocalBackend(settings, model, SlowEngine(model.tokenizer))
    return await serve(settings, backend)


if __name__ == "__main__":
    configure_logging(process="inference-service", level="warning", log_format="json")
    sys.exit(asyncio.run(main()))
