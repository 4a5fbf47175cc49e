"""POST /v1/completions.

Owns the order of steps: read, check, translate, call, answer.
"""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request, Response
import grpc
import orjson

from qwenvl.observability import name_call
from rest_adapter import translate_raw
from rest_adapter.errors import from_rpc
from rest_adapter.routes.body import read, while_connected
from rest_adapter.routes.state import caller, shared
from rest_adapter.schema import parse_completion
from rest_adapter.sse import EventStream
from rest_adapter.sse_raw import RawChunkWriter


router: Final = APIRouter()


@router.post("/v1/completions")
async def create_completion(request: Request) -> Response:
    """Continues raw prompts, whole or as a stream."""
    asked = await read(request, parse_completion)
    state = shared(request)
    request_id = name_call(asked.request_id or "")
    specs = translate_raw.to_specs(
        asked, request_id, max_media_bytes=state.settings.max_media_mib * 2**20
    )
    asker = caller(request)
    try:
        if not asked.stream:
            responses = await while_connected(request, state.backend.create_raw(specs, asker))
            document = translate_raw.completion(responses, asked, request_id, state.version)
            return Response(orjson.dumps(document), media_type="application/json")
        events = await while_connected(request, state.backend.stream_raw(specs, asker))
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error, translate_raw.param_of) from error
    return EventStream(
        events,
        RawChunkWriter(asked, request_id, state.version),
        heartbeat_s=state.settings.sse_heartbeat_s,
        to_error=lambda error: from_rpc(error, translate_raw.param_of),
    )
