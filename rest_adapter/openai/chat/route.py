"""The route POST /v1/chat/completions."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request, Response
import grpc
import orjson

from qwenvl.observability import name_call
from rest_adapter.disconnect import while_connected
from rest_adapter.errors import from_rpc
from rest_adapter.json_body import read_json
from rest_adapter.openai.chat import translate
from rest_adapter.openai.chat.schema import parse_chat
from rest_adapter.openai.chat.stream import ChunkOptions, ChunkWriter
from rest_adapter.state import call_metadata, shared
from rest_adapter.stream import EventStream


router: Final = APIRouter()


@router.post("/v1/chat/completions")
async def create_chat_completion(request: Request) -> Response:
    """Answers a conversation, in one response or as a stream."""
    chat = await read_json(request, parse_chat)
    state = shared(request)
    spec = translate.to_spec(chat, max_media_bytes=state.settings.max_media_mib * 2**20)
    # Not the `x-request-id` header: a gateway may use one for several requests.
    spec.request_id = name_call(spec.request_id)
    paths = translate.FieldPaths(chat)
    metadata = call_metadata(request)
    try:
        if not chat.stream:
            work = state.service.create_chat(spec, metadata=metadata)
            response = await while_connected(request, work)
            document = translate.completion(response, chat, state.version)
            return Response(orjson.dumps(document), media_type="application/json")
        beginning = state.service.stream_chat(spec, metadata=metadata)
        events = await while_connected(request, beginning)
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
        ChunkWriter(options, state.version).render,
        heartbeat_s=state.settings.sse_heartbeat_s,
        to_error=lambda error: from_rpc(error, paths.param_of),
    )
