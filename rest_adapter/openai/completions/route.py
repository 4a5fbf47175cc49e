"""The routes POST /v1/completions and /v1/completions/render."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request, Response

from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.observability import name_call
from rest_adapter.body import body_of
from rest_adapter.json_body import read_json
from rest_adapter.off_loop import off_loop
from rest_adapter.openai.completions import prompts, translate
from rest_adapter.openai.completions.schema import (
    CompletionRequest,
    parse_completion,
    parse_render,
)
from rest_adapter.openai.completions.stream import CompletionChunkWriter
from rest_adapter.refusals import take_calls
from rest_adapter.reply import CollectedAnswers, json_reply, stream_reply
from rest_adapter.state import call_metadata, shared


router: Final = APIRouter()


@router.post("/v1/completions")
async def create_completion(request: Request) -> Response:
    """Completes prompts, in one response or as a stream."""
    asked = await read_json(request, parse_completion)
    state, size = shared(request), body_of(request).size
    request_id = name_call(asked.request_id or "")
    specs = await _specs(request, asked, request_id)
    metadata = call_metadata(request)
    param_of = translate.FieldPaths(asked).param_of
    if not asked.stream:
        collected = _collected(request, specs)
        return await json_reply(
            request,
            prompts.create_all(state.service, specs, metadata, size, collected),
            lambda responses: translate.completion(responses, asked, request_id, state.version),
            param_of,
            collected=collected,
        )
    writer = CompletionChunkWriter(asked, request_id, state.version)
    return await stream_reply(
        request,
        prompts.stream_all(state.service, specs, metadata, size),
        writer.render,
        param_of,
        writer.size_of,
    )


@router.post("/v1/completions/render")
async def render_completion(request: Request) -> Response:
    """The prompts of a text completion, without answers: a list, as of vLLM."""
    asked = await read_json(request, parse_render)
    strings = bool(asked.return_token_strs)
    specs = await _specs(request, asked, name_call(asked.request_id or ""))
    messages = [
        completion_pb.RenderCompletionRequest(spec=spec, return_token_strings=strings)
        for spec in specs
    ]
    service, metadata = shared(request).service, call_metadata(request)
    size, collected = body_of(request).size, _collected(request, specs)
    return await json_reply(
        request,
        prompts.render_all(service, messages, metadata, size, collected),
        lambda found: translate.rendered(found, asked, strings=strings),
        translate.FieldPaths(asked).param_of,
        collected=collected,
    )


def _collected(
    request: Request, specs: list[completion_pb.CompletionSpec]
) -> CollectedAnswers | None:
    return CollectedAnswers(body_of(request)) if len(specs) > 1 else None


async def _specs(
    request: Request, asked: CompletionRequest, request_id: str
) -> list[completion_pb.CompletionSpec]:
    body, maximum = body_of(request), shared(request).settings.max_media_mib * 2**20
    common = await off_loop(body.size, translate.common_spec, asked, max_media_bytes=maximum)
    body.take(translate.copies_bytes(asked, common))
    specs = await off_loop(body.size, translate.to_specs, asked, common, request_id)
    take_calls(request.scope, len(specs) - 1)
    return specs
