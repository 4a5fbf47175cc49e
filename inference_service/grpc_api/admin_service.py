"""AdminService: state, load, abort and drain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
import contextvars
from importlib.metadata import version
from typing import Any

from inference_service.backend.base import Backend, BackendState, Load
from inference_service.errors import InvalidArgumentError, PermissionDeniedError
from inference_service.grpc_api.call_context import Context, this_call
from inference_service.settings import ServiceSettings
from qwenvl.inference.v1 import admin_service_pb2 as admin_pb
from qwenvl.inference.v1 import admin_service_pb2_grpc as admin_grpc
from qwenvl.limits import MAX_MESSAGE_BYTES


_MAX_ABORTS = 256
_STATES = {
    BackendState.LOADING: admin_pb.ENGINE_STATE_LOADING,
    BackendState.READY: admin_pb.ENGINE_STATE_READY,
    BackendState.RESTARTING: admin_pb.ENGINE_STATE_RESTARTING,
    BackendState.DRAINING: admin_pb.ENGINE_STATE_DRAINING,
    BackendState.FAILED: admin_pb.ENGINE_STATE_FAILED,
}

Drain = Callable[[float], Coroutine[Any, Any, None]]


class AdminServicer(admin_grpc.AdminServiceServicer):
    """Serves AdminService.

    Args:
        backend: The backend.
        settings: The settings of the service.
        drain: Ends the service within a time in seconds; None = not allowed on this address.
    """

    def __init__(self, backend: Backend, settings: ServiceSettings, drain: Drain | None) -> None:
        self._backend = backend
        self._settings = settings
        self._drain = drain
        self._draining: asyncio.Task[None] | None = None

    async def Abort(  # noqa: N802 - the proto's name
        self, request: admin_pb.AbortRequest, context: Context
    ) -> admin_pb.AbortResponse:
        """Ends requests in flight: the caller's own on the main address, anyone's on the admin address."""
        del context
        caller = this_call().caller if self._drain is None else None
        count = len(request.request_ids)
        if not 1 <= count <= _MAX_ABORTS:
            raise InvalidArgumentError(
                f"request_ids has {count} ids; 1 to {_MAX_ABORTS} are allowed.", field="request_ids"
            )
        response = admin_pb.AbortResponse()
        for request_id in request.request_ids:
            found = await self._backend.abort(request_id, caller)
            ids = response.aborted_request_ids if found else response.unknown_request_ids
            ids.append(request_id)
        return response

    async def AbortRequest(  # noqa: N802
        self, request: admin_pb.AbortRequestRequest, context: Context
    ) -> admin_pb.AbortRequestResponse:
        """The deprecated name of `Abort`."""
        answer = await self.Abort(admin_pb.AbortRequest(request_ids=request.request_ids), context)
        return admin_pb.AbortRequestResponse(
            aborted=answer.aborted_request_ids, unknown=answer.unknown_request_ids
        )

    async def GetServerInfo(  # noqa: N802
        self, request: admin_pb.GetServerInfoRequest, context: Context
    ) -> admin_pb.GetServerInfoResponse:
        """Version, limits and state."""
        del request, context
        info = self._backend.info
        return admin_pb.GetServerInfoResponse(
            version=version("qwen-vl-serving"),
            model=self._backend.names[0],
            max_message_bytes=MAX_MESSAGE_BYTES,
            engine_state=_STATES[self._backend.state],
            engine_restarts=sum(info.restarts.values()),
            device=info.device,
            slow_path=info.slow_path,
            dtype=info.dtype,
            load=self._load(),
            max_num_seqs=info.max_num_seqs,
            max_num_batched_tokens=info.max_num_batched_tokens,
            max_model_len=info.max_context_tokens,
            engine_pid=info.pid,
        )

    async def GetLoad(  # noqa: N802
        self, request: admin_pb.GetLoadRequest, context: Context
    ) -> admin_pb.GetLoadResponse:
        """The current load."""
        del request, context
        return admin_pb.GetLoadResponse(load=self._load())

    def _load(self) -> admin_pb.Load:
        """The load; with API keys, the counters of all callers together are for the operator."""
        is_operator = self._drain is not None or self._settings.api_key_file is None
        return _load_message(self._backend.load(), is_operator=is_operator)

    async def Drain(  # noqa: N802
        self, request: admin_pb.DrainRequest, context: Context
    ) -> admin_pb.DrainResponse:
        """Starts draining: no new requests, then the service ends."""
        del context
        if self._drain is None:
            raise PermissionDeniedError("Drain is served on --admin-address only.")
        budget_s = self._settings.drain_timeout_s
        if request.HasField("budget"):
            budget_s = max(0.0, request.budget.seconds + request.budget.nanos / 1e9)
        in_flight = self._backend.in_flight
        if self._draining is None:
            # In a context of its own: what ends from now on has nothing to do with this call's ids.
            self._draining = asyncio.create_task(
                self._drain(budget_s), context=contextvars.Context()
            )
        return admin_pb.DrainResponse(requests_in_flight=in_flight)


def _load_message(load: Load, *, is_operator: bool) -> admin_pb.Load:
    message = admin_pb.Load(
        running_requests=load.running,
        waiting_requests=load.waiting,
        kv_pages_total=load.kv_pages_total,
        kv_pages_used=load.kv_pages_used,
        kv_page_tokens=load.kv_page_tokens,
    )
    if is_operator:
        message.MergeFrom(_counters(load))
    return message


def _counters(load: Load) -> admin_pb.Load:
    """Counters that would tell one caller what others do: how long their prompts are, and what they repeat."""
    return admin_pb.Load(
        kv_pages_cached=load.kv_pages_cached,
        prefix_cache_queries=load.prefix_queries,
        prefix_cache_hits=load.prefix_hits,
        encoder_cache_queries=load.encoder_queries,
        encoder_cache_hits=load.encoder_hits,
        preemptions=load.preemptions,
        pixel_bytes_in_flight=load.pixel_bytes_in_flight,
    )
