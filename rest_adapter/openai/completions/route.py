"""The route POST /v1/completions."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request, Response
import grpc
import orjson

from qwenvl.observability import name_call
from rest_adapter.disconnect import while_connected
from rest_adapter.errors import from_rpc
from rest_adapter.json_body import read_json
from rest_adapter.openai.completions import prompts, translate
from rest_adapter.openai.completions.schema import parse_completion
from rest_adapter.openai.completions.stream import CompletionChunkWriter
from rest_adapter.state import call_metadata, shared
from rest_adapter.stream import EventStream


router: Final = APIRouter()


@router.post("/v1/completions")
async def create_completion(request: Request) -> Response:
    """Completes prompts, in one response or as a stream."""
    asked = await read_json(request, parse_completion)
    state = shared(request)
    request_id = name_call(asked.request_id or "")
    specs = translate.to_specs(
        asked, request_id, max_media_bytes=state.settings.max_media_mib * 2**20
    )
    metadata = call_metadata(request)
    try:
        if not asked.stream:
            work = prompts.create_all(state.service, specs, metadata)
            responses = await while_connected(request, work)
            document = translate.completion(responses, asked, request_id, state.version)
            return Response(orjson.dumps(document), media_type="application/json")
        beginning = prompts.stream_all(state.service, specs, metadata)
        events = await while_connected(request, beginning)
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error, translate.param_of) from error
    return EventStream(
        events,
        CompletionChunkWriter(asked, request_id, state.version).render,
        heartbeat_s=state.settings.sse_heartbeat_s,
        to_error=lambda error: from_rpc(error, translate.param_of),
    )
