"""The routes that answer: POST /v1/responses, .../input_tokens, which only counts, and .../render."""

from __future__ import annotations

from collections.abc import AsyncIterator
import contextlib
from typing import Final

from fastapi import APIRouter, FastAPI, Request, Response

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from rest_adapter.body import body_of
from rest_adapter.errors import ApiError, internal
from rest_adapter.off_loop import off_loop
from rest_adapter.openai.answer import usage
from rest_adapter.openai.responses.listing import new_id
from rest_adapter.openai.responses.records import Record, open_records
from rest_adapter.openai.responses.requests import (
    Prepared,
    caller_of_request,
    prepare,
    records_of,
)
from rest_adapter.openai.responses.resource import Beginning
from rest_adapter.openai.responses.stream import ResponseEvents
from rest_adapter.openai.responses.truncation import fitting
from rest_adapter.openai.responses.writer import ResponseWriter
from rest_adapter.rendered import rendered_prompt
from rest_adapter.reply import hold_answer, json_reply, result_of, size_of
from rest_adapter.state import call_metadata, shared
from rest_adapter.stream import EventStream


router: Final = APIRouter()


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Opens what is kept of responses, for `records_of`, and closes it."""
    async with open_records(app.state.shared.settings) as records:
        app.state.responses = records
        yield


@router.post("/v1/responses")
async def create_response(request: Request) -> Response:
    """Answers a conversation, in one response or as a stream."""
    prepared = await prepare(request)
    if not prepared.conversation.asked.request.stream:
        work = _whole(request, prepared)
        return await json_reply(request, work, lambda writer: writer.resource, prepared.param_of)
    events = await result_of(request, _begun(request, prepared), prepared.param_of)
    return EventStream(
        events,
        lambda frames: frames,
        heartbeat_s=shared(request).settings.sse_heartbeat_s,
        to_error=lambda _: internal(),  # `events` converts them
        render_error=events.render_error,
        size_of=len,
    )


@router.post("/v1/responses/input_tokens")
async def count_input_tokens(request: Request) -> Response:
    """Counts the tokens of the input as generation would."""
    prepared = await prepare(request)
    service, metadata = shared(request).service, call_metadata(request)
    return await json_reply(
        request,
        fitting(
            prepared,
            lambda: service.count_tokens(
                prepared.spec, metadata=metadata, spec_bytes=prepared.spec_bytes
            ),
        ),
        lambda usage: {"object": "response.input_tokens", "input_tokens": usage.prompt_tokens},
        prepared.param_of,
    )


@router.post("/v1/responses/render")
async def render_response(request: Request) -> Response:
    """The prompt of a response, without an answer."""
    prepared = await prepare(request)
    body = prepared.conversation.asked.request
    service, metadata = shared(request).service, call_metadata(request)
    return await json_reply(
        request,
        fitting(
            prepared,
            lambda: service.render_chat(
                chat_pb.RenderChatCompletionRequest(spec=prepared.spec),
                metadata=metadata,
                spec_bytes=prepared.spec_bytes,
            ),
        ),
        lambda found: rendered_prompt(
            found,
            usage(found.started.prompt_usage),
            stream=bool(body.stream),
            cache_salt=body.cache_salt,
        ),
        prepared.param_of,
    )


async def _whole(request: Request, prepared: Prepared) -> ResponseWriter:
    """The response, after it was kept."""
    service, metadata = shared(request).service, call_metadata(request)
    answer = await fitting(
        prepared,
        lambda: service.create_chat(
            prepared.spec, metadata=metadata, spec_bytes=prepared.spec_bytes
        ),
    )
    writer = _writer(request, prepared, answer.started)
    await off_loop(body_of(request).size, writer.begin)
    size = size_of(answer) + writer.num_bytes
    # Without memory it is kept all the same, and only its sending is refused.
    with contextlib.suppress(ApiError):
        await hold_answer(request, size)
    await off_loop(size, writer.add_choice, answer.choices[0], answer.usage)
    await _keep(request, prepared, writer)
    return writer


async def _begun(request: Request, prepared: Prepared) -> ResponseEvents:
    """The response as a stream, after the service has begun it."""
    service, metadata = shared(request).service, call_metadata(request)
    events = await fitting(
        prepared,
        lambda: service.stream_chat(
            prepared.spec, metadata=metadata, spec_bytes=prepared.spec_bytes
        ),
    )
    rest = aiter(events)
    first: chat_pb.StreamChatCompletionResponse = await anext(rest)
    writer = _writer(request, prepared, first.started)
    return ResponseEvents(
        events,
        rest,
        writer,
        caller=caller_of_request(),
        in_flight=records_of(request).in_flight,
        keep=lambda: _keep(request, prepared, writer),
        body_bytes=body_of(request).size,
        take=body_of(request).take_for_answer,
        param_of=prepared.param_of,
    )


def _writer(request: Request, prepared: Prepared, started: generation_pb.Started) -> ResponseWriter:
    asked = prepared.conversation.asked
    beginning = Beginning(
        asked=asked,
        response_id=new_id("resp"),
        stored=records_of(request).will_store(asked.request),
        started=started,
    )
    return ResponseWriter(beginning, is_streamed=bool(asked.request.stream))


async def _keep(request: Request, prepared: Prepared, writer: ResponseWriter) -> None:
    record = Record(
        caller=caller_of_request(),
        request=prepared.conversation.asked.request,
        items=prepared.conversation.items,
        resource=writer.resource,
        frames=writer.packed_frames(),
        size=body_of(request).size,
    )
    if not await records_of(request).keep(record):
        writer.resource["store"] = False  # the last event of a stream is rendered after this
