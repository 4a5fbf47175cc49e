"""grpc.health.v1: the health that probes and clients see, from the state of the engine.

`""`, every service and `readiness` are SERVING while the engine answers and the service does not drain. `liveness` is
SERVING as long as the front can still bring the engine back: only FAILED ends it, so that a restart of the pod,
which costs a model load, is the last resort.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer as AsyncHealthServicer

from inference_service.engine_client.interface import EngineState


READINESS = "readiness"
LIVENESS = "liveness"
_MAX_LISTED = 100

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class HealthServicer(AsyncHealthServicer):  # type: ignore[misc]  # grpcio-health-checking is untyped
    """Check and Watch of grpcio-health-checking, and the List that its aio servicer lacks (gRPC A90)."""

    async def List(  # noqa: N802 - the proto's name
        self, request: health_pb2.HealthListRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthListResponse:
        """The status of every service."""
        del request, context
        statuses = dict(list(self._server_status.items())[:_MAX_LISTED])
        return health_pb2.HealthListResponse(
            statuses={
                name: health_pb2.HealthCheckResponse(status=status)
                for name, status in statuses.items()
            }
        )


class Health:
    """Keeps the statuses in step with the engine and the drain."""

    def __init__(self, service_names: tuple[str, ...]) -> None:
        self.servicer = HealthServicer()
        self._ready_names = ("", READINESS, *service_names)
        self._draining = False
        self._state = EngineState.STARTING
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Makes every name known, as not serving yet."""
        await self._publish()

    def on_engine_state(self, state: EngineState) -> None:
        """Takes the engine's new state."""
        self._state = state
        task = asyncio.get_running_loop().create_task(self._publish())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self) -> None:
        """Readiness ends for good."""
        self._draining = True
        await self._publish()

    async def _publish(self) -> None:
        # Looked at anew for every name: the state may change while watchers are told.
        for name in self._ready_names:
            await self.servicer.set(name, _SERVING if self._is_ready else _NOT_SERVING)
        await self.servicer.set(LIVENESS, _SERVING if self._is_alive else _NOT_SERVING)

    @property
    def _is_ready(self) -> bool:
        return self._state is EngineState.READY and not self._draining

    @property
    def _is_alive(self) -> bool:
        return self._state is not EngineState.FAILED
