"""The routes POST /v1/messages, /v1/messages/count_tokens and /v1/messages/render."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fastapi import APIRouter, Request, Response

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.observability import name_call
from rest_adapter.anthropic.messages import answer
from rest_adapter.anthropic.messages.caching import is_marked
from rest_adapter.anthropic.messages.field_paths import FieldPaths
from rest_adapter.anthropic.messages.schema import (
    MessagesRequest,
    parse_count,
    parse_messages,
)
from rest_adapter.anthropic.messages.stream import EventWriter
from rest_adapter.anthropic.messages.translate import to_spec
from rest_adapter.body import body_of
from rest_adapter.json_body import read_json
from rest_adapter.off_loop import off_loop
from rest_adapter.rendered import rendered_prompt
from rest_adapter.reply import json_reply, stream_reply
from rest_adapter.state import call_metadata, shared


PATH: Final = "/v1/messages"
router: Final = APIRouter()


@router.post(PATH)
async def create_message(request: Request) -> Response:
    """Answers a conversation, in one response or as a stream."""
    asked = await read_json(request, parse_messages)
    spec, param_of = await _translated(request, asked)
    service, metadata = shared(request).service, call_metadata(request)
    size = body_of(request).size
    form = {
        "only_prompt": asked.only_prompt,
        "omits_thinking": asked.thinking is not None and asked.thinking.display == "omitted",
        "tells_writes": await off_loop(size, is_marked, asked),
    }
    if not asked.stream:
        return await json_reply(
            request,
            service.create_chat(spec, metadata=metadata, spec_bytes=size),
            lambda response: answer.message(response, **form),
            param_of,
        )
    return await stream_reply(
        request,
        service.stream_chat(spec, metadata=metadata, spec_bytes=size),
        EventWriter(**form).render,
        param_of,
    )


@router.post(f"{PATH}/count_tokens")
async def count_tokens(request: Request) -> Response:
    """Counts the tokens of a conversation, images included."""
    asked = await read_json(request, parse_count)
    spec, param_of = await _translated(request, asked)
    work = shared(request).service.count_tokens(
        spec, metadata=call_metadata(request), spec_bytes=body_of(request).size
    )
    return await json_reply(
        request, work, lambda usage: {"input_tokens": usage.prompt_tokens}, param_of
    )


@router.post(f"{PATH}/render")
async def render_message(request: Request) -> Response:
    """The prompt of a conversation, without an answer."""
    asked = await read_json(request, parse_messages)
    spec, param_of = await _translated(request, asked)
    message = chat_pb.RenderChatCompletionRequest(spec=spec)
    return await json_reply(
        request,
        shared(request).service.render_chat(
            message, metadata=call_metadata(request), spec_bytes=body_of(request).size
        ),
        lambda found: rendered_prompt(
            found,
            answer.usage(found.started.prompt_usage, tells_writes=False),
            stream=bool(asked.stream),
            only_prompt=asked.only_prompt,
        ),
        param_of,
    )


async def _translated(
    request: Request, asked: MessagesRequest
) -> tuple[chat_pb.ChatCompletionSpec, Callable[[str], str | None]]:
    """The request as a proto, and the mapping of its fields back to the JSON."""
    spec, places = await off_loop(
        body_of(request).size,
        to_spec,
        asked,
        max_media_bytes=shared(request).settings.max_media_mib * 2**20,
    )
    spec.request_id = name_call("")
    return spec, FieldPaths(asked, places).param_of
