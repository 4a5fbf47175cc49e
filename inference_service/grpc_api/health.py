"""Serves grpc.health.v1: the status for probes and clients.

`""`, every service and `readiness` are SERVING while the backend is ready. `liveness` is SERVING as long as the
backend can recover: only FAILED ends it, so that a restart of the pod, which loads the model again, is the last
resort.
"""

from __future__ import annotations

import asyncio

from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer as AsyncHealthServicer

from inference_service.backend.base import BackendState
from inference_service.grpc_api.call_context import Context


READINESS = "readiness"
LIVENESS = "liveness"
_MAX_LISTED = 100

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class HealthServicer(AsyncHealthServicer):  # type: ignore[misc]  # grpcio-health-checking is untyped
    """Check and Watch of grpcio-health-checking, and the List that its aio servicer lacks (gRPC A90)."""

    async def List(  # noqa: N802 - the proto's name
        self, request: health_pb2.HealthListRequest, context: Context
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
    """Keeps the statuses in step with the backend's state."""

    def __init__(self, service_names: tuple[str, ...]) -> None:
        self.servicer = HealthServicer()
        self._ready_names = ("", READINESS, *service_names)
        self._state = BackendState.LOADING
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Publishes every name as not serving."""
        await self._publish()

    def on_state(self, state: BackendState) -> None:
        """Publishes the backend's new state."""
        self._state = state
        task = asyncio.get_running_loop().create_task(self._publish())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settle(self) -> None:
        """Waits until the state is published to all watchers."""
        await asyncio.gather(*self._tasks)

    async def _publish(self) -> None:
        # Read again for every name: the state may change in between.
        for name in self._ready_names:
            await self.servicer.set(name, _SERVING if self._is_ready else _NOT_SERVING)
        await self.servicer.set(LIVENESS, _SERVING if self._is_alive else _NOT_SERVING)

    @property
    def _is_ready(self) -> bool:
        return self._state is BackendState.READY

    @property
    def _is_alive(self) -> bool:
        return self._state is not BackendState.FAILED
