"""POST /v1/chat/completions.

Owns the order of steps: read, check, translate, call, answer.
"""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request, Response
import grpc
import orjson

from qwenvl.observability import name_call
from rest_adapter import translate
from rest_adapter.errors import from_rpc
from rest_adapter.routes.body import read, while_connected
from rest_adapter.routes.state import caller, shared
from rest_adapter.schema import parse_chat
from rest_adapter.sse import ChunkOptions, ChunkWriter, EventStream


router: Final = APIRouter()


@router.post("/v1/chat/completions")
async def create_chat_completion(request: Request) -> Response:
    """Answers a conversation, whole or as a stream."""
    chat = await read(request, parse_chat)
    state = shared(request)
    spec = translate.to_spec(chat, max_media_bytes=state.settings.max_media_mib * 2**20)
    # Not the `x-request-id` header: a gateway may send one for several requests.
    spec.request_id = name_call(spec.request_id)
    paths = translate.FieldPaths(chat)
    asker = caller(request)
    try:
        if not chat.stream:
            response = await while_connected(request, state.backend.create(spec, asker))
            document = translate.completion(response, chat, state.version)
            return Response(orjson.dumps(document), media_type="application/json")
        events = await while_connected(request, state.backend.stream(spec, asker))
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error, paths.param_of) from error
    options = ChunkOptions(
        n=1 if chat.n is None else chat.n,
        usage=bool(chat.stream_options and chat.stream_options.include_usage),
        logprobs=bool(chat.logprobs),
        token_ids=bool(chat.return_token_ids),
        grounding=bool(chat.grounding),
    )
    return EventStream(
        events,
        ChunkWriter(options, state.version),
        heartbeat_s=state.settings.sse_heartbeat_s,
        to_error=lambda error: from_rpc(error, paths.param_of),
    )
