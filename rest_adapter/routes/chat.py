"""POST /v1/chat/completions.

Owns the order of steps: read, check, translate, call, answer. Must not know the proto's fields.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
import logging
from typing import Any, Final, TypeVar
import uuid

from fastapi import APIRouter, Request, Response
import grpc
import orjson

from rest_adapter import translate
from rest_adapter.errors import ApiError, aborted, from_rpc, invalid
from rest_adapter.routes.state import caller, shared
from rest_adapter.schema import ChatRequest, parse_request
from rest_adapter.sse import ChunkOptions, ChunkWriter, EventStream, until_disconnected


router: Final = APIRouter()
_LOG: Final = logging.getLogger(__name__)
_MAX_LOGGED_FIELDS: Final = 20
_Answer = TypeVar("_Answer")


@router.post("/v1/chat/completions")
async def create_chat_completion(request: Request) -> Response:
    """Answers a conversation, whole or as a stream."""
    chat = await _read(request)
    state = shared(request)
    spec = translate.to_spec(chat, max_media_bytes=state.settings.max_media_mib * 2**20)
    # Not the `x-request-id` header: a gateway may send one for several requests.
    spec.request_id = spec.request_id or uuid.uuid4().hex
    paths = translate.FieldPaths(chat)
    asker = caller(request)
    try:
        if not chat.stream:
            response = await _while_connected(request, state.backend.create(spec, asker))
            document = translate.completion(response, chat, state.version)
            return Response(orjson.dumps(document), media_type="application/json")
        events = await _while_connected(request, state.backend.stream(spec, asker))
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error, paths.param_of) from error
    options = ChunkOptions(
        n=1 if chat.n is None else chat.n,
        usage=bool(chat.stream_options and chat.stream_options.include_usage),
        logprobs=bool(chat.logprobs),
        token_ids=bool(chat.return_token_ids),
    )
    return EventStream(
        events,
        ChunkWriter(options, state.version),
        heartbeat_s=state.settings.sse_heartbeat_s,
        to_error=lambda error: from_rpc(error, paths.param_of),
    )


async def _read(request: Request) -> ChatRequest:
    """Reads and checks the body; fields that nobody knows are logged or refused."""
    body = await request.body()
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type and media_type != "application/json":
        raise ApiError(415, "The content type must be application/json.", code="unsupported_media")
    try:
        # orjson refuses invalid UTF-8, and nesting deeper than 1024 before it becomes objects.
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise invalid("The body is not valid JSON.", None, "invalid_json") from None
    chat, unknown = parse_request(document)
    if unknown:
        if shared(request).settings.strict_fields:
            raise invalid(f"'{unknown[0]}' is unknown.", unknown[0], "unknown_parameter")
        _LOG.info("unknown fields are ignored: %s", ", ".join(unknown[:_MAX_LOGGED_FIELDS]))
    return chat


async def _while_connected(request: Request, work: Coroutine[Any, Any, _Answer]) -> _Answer:
    """Does the work, and cancels it when the client goes away; Starlette does so for streams only."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(until_disconnected(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise aborted()
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
