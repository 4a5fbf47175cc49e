"""The route POST /v1/chat/completions."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request, Response

from qwenvl.observability import name_call
from rest_adapter.body import body_of
from rest_adapter.json_body import read_json
from rest_adapter.off_loop import off_loop
from rest_adapter.openai.chat import translate
from rest_adapter.openai.chat.schema import parse_chat
from rest_adapter.openai.chat.stream import ChunkOptions, ChunkWriter
from rest_adapter.reply import json_reply, stream_reply
from rest_adapter.state import call_metadata, shared


router: Final = APIRouter()


@router.post("/v1/chat/completions")
async def create_chat_completion(request: Request) -> Response:
    """Answers a conversation, in one response or as a stream."""
    asked = await read_json(request, parse_chat)
    chat = asked.request
    state = shared(request)
    size = body_of(request).size
    spec = await off_loop(
        size,
        translate.to_spec,
        asked,
        max_media_bytes=state.settings.max_media_mib * 2**20,
    )
    # Not the `x-request-id` header: a gateway may use one for several requests.
    spec.request_id = name_call(spec.request_id)
    param_of = translate.FieldPaths(asked).param_of
    metadata = call_metadata(request)
    if not chat.stream:
        return await json_reply(
            request,
            state.service.create_chat(spec, metadata=metadata, spec_bytes=size),
            lambda response: translate.completion(response, asked, state.version),
            param_of,
        )
    extra = chat.stream_options
    if extra is not None and extra.continuous_usage_stats:
        spec.response.return_token_ids = True  # to count them
    options = ChunkOptions(
        n=1 if chat.n is None else chat.n,
        usage=bool(extra and extra.include_usage),
        running_usage=bool(extra and extra.continuous_usage_stats),
        logprobs=bool(chat.logprobs),
        token_ids=bool(chat.return_token_ids),
        grounding=bool(chat.grounding),
        named=asked.tools.named,
    )
    return await stream_reply(
        request,
        state.service.stream_chat(spec, metadata=metadata, spec_bytes=size),
        ChunkWriter(options, state.version).render,
        param_of,
    )
