"""The route POST /v1/completions."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request, Response

from qwenvl.observability import name_call
from rest_adapter.body import body_of
from rest_adapter.json_body import read_json
from rest_adapter.off_loop import off_loop
from rest_adapter.openai.completions import prompts, translate
from rest_adapter.openai.completions.schema import parse_completion
from rest_adapter.openai.completions.stream import CompletionChunkWriter
from rest_adapter.reply import json_reply, stream_reply
from rest_adapter.state import call_metadata, shared


router: Final = APIRouter()


@router.post("/v1/completions")
async def create_completion(request: Request) -> Response:
    """Completes prompts, in one response or as a stream."""
    asked = await read_json(request, parse_completion)
    state = shared(request)
    request_id = name_call(asked.request_id or "")
    size = body_of(request).size
    specs = await off_loop(
        size,
        translate.to_specs,
        asked,
        request_id,
        max_media_bytes=state.settings.max_media_mib * 2**20,
    )
    metadata = call_metadata(request)
    param_of = translate.FieldPaths(asked).param_of
    if not asked.stream:
        return await json_reply(
            request,
            prompts.create_all(state.service, specs, metadata, size),
            lambda responses: translate.completion(responses, asked, request_id, state.version),
            param_of,
        )
    return await stream_reply(
        request,
        prompts.stream_all(state.service, specs, metadata, size),
        CompletionChunkWriter(asked, request_id, state.version).render,
        param_of,
    )
