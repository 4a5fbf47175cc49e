"""Serves grpc.health.v1: the status for probes and clients.

`""`, every service and `readiness` are SERVING while the backend is ready. `liveness` is SERVING as long as the
backend can recover: only FAILED ends it, so that a restart of the pod, which loads the model again, is the last
resort.

Written here because the servicer of grpcio-health-checking lacks List (gRPC A90), keeps whatever name a watcher sends,
and writes to watchers under the lock of its statuses, so that one that does not read would stop all changes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inference_service.backend.base import BackendState
from inference_service.grpc_api.call_context import Context


READINESS: Final = "readiness"
LIVENESS: Final = "liveness"
MAX_WATCHES: Final = 256
"""Maximum open watches, which need no key and have no deadline; beyond that a new one takes the place of another."""

_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(slots=True, eq=False)
class _Watch:
    """An open watch.

    Attributes:
        peer: Its connection, as gRPC writes it.
        woken: Set when the statuses change, and when it ends.
        is_replaced: Its place is another's.
    """

    peer: str
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    is_replaced: bool = False


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # grpcio-health-checking is untyped
    """Serves the statuses and keeps them in step with the backend's state.

    Args:
        service_names: Full names of the services.
        is_used: Whether calls with a key have come over a connection: its watches keep their places.
    """

    def __init__(
        self, service_names: tuple[str, ...], is_used: Callable[[str], bool] = lambda _: False
    ) -> None:
        self._is_used = is_used
        self._ready_names = ("", READINESS, *service_names)
        self._statuses: dict[str, int] = {}
        self._watches: dict[_Watch, None] = {}  # in order of their beginnings
        self.on_state(BackendState.LOADING)

    def on_state(self, state: BackendState) -> None:
        """Publishes the backend's new state."""
        ready = _SERVING if state is BackendState.READY else _NOT_SERVING
        alive = _NOT_SERVING if state is BackendState.FAILED else _SERVING
        self._statuses = dict.fromkeys(self._ready_names, ready) | {LIVENESS: alive}
        for watch in self._watches:
            watch.woken.set()

    async def Check(  # noqa: N802 - the proto's name
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """The status of one service."""
        await self._refuse_unknown(request.service, context)
        return health_pb2.HealthCheckResponse(status=self._statuses[request.service])

    async def List(  # noqa: N802
        self, request: health_pb2.HealthListRequest, context: Context
    ) -> health_pb2.HealthListResponse:
        """The status of every service."""
        del request, context
        return health_pb2.HealthListResponse(
            statuses={
                name: health_pb2.HealthCheckResponse(status=status)
                for name, status in self._statuses.items()
            }
        )

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status of one service, now and after every change; names that are never served are refused."""
        await self._refuse_unknown(request.service, context)
        watch = _Watch(context.peer())
        if len(self._watches) >= MAX_WATCHES and not self._make_room():
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{MAX_WATCHES} watches are open, the maximum, each of a client of its own; use Check.",
            )
        self._watches[watch] = None
        try:
            last = None
            while not watch.is_replaced:
                watch.woken.clear()
                status = self._statuses[request.service]
                if status != last:
                    yield health_pb2.HealthCheckResponse(status=status)
                    last = status
                await watch.woken.wait()
        finally:
            self._watches.pop(watch, None)
        await context.abort(
            grpc.StatusCode.UNAVAILABLE,
            f"{MAX_WATCHES} watches are open, the maximum, and another one came; watch again, or use Check.",
        )

    def _make_room(self) -> bool:
        """Ends the oldest watch of the connection with the most, first of those over which no call with a key came.

        The only watch of a client with a key goes on: it would come back at once, and take the place of the next one.
        """
        counts = Counter(watch.peer for watch in self._watches)
        oldest = max(
            self._watches, key=lambda watch: (not self._is_used(watch.peer), counts[watch.peer])
        )
        if self._is_used(oldest.peer) and counts[oldest.peer] == 1:
            return False
        del self._watches[oldest]
        oldest.is_replaced = True
        oldest.woken.set()
        return True

    async def _refuse_unknown(self, name: str, context: Context) -> None:
        if name not in self._statuses:
            await context.abort(grpc.StatusCode.NOT_FOUND, "The service has no such name.")
