"""Prepares a request for the inference service: what it continues, what it refers to, and its proto."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.observability import current_call, name_call
from rest_adapter.body import body_of
from rest_adapter.errors import unsupported
from rest_adapter.json_body import read_json
from rest_adapter.off_loop import off_loop
from rest_adapter.openai.responses.records import Records
from rest_adapter.openai.responses.schema import Asked, parse_responses
from rest_adapter.openai.responses.translate import (
    Conversation,
    FieldPaths,
    conversation_of,
    to_spec,
)
from rest_adapter.state import shared


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that is ready to be sent.

    Attributes:
        conversation: What the model is to answer.
        spec: The same for the service.
        spec_bytes: About how many bytes that has.
    """

    conversation: Conversation
    spec: chat_pb.ChatCompletionSpec
    spec_bytes: int

    @property
    def param_of(self) -> Callable[[str], str | None]:
        """Turns a proto field path into a path of the request's JSON."""
        return FieldPaths(self.conversation).param_of


def records_of(request: Request) -> Records:
    """The responses that are kept, as opened by the lifespan of the application."""
    records = request.app.state.responses
    assert isinstance(records, Records)
    return records


def caller_of_request() -> str:
    """Who makes the current request; empty = a caller without a key."""
    call = current_call()
    assert call is not None
    return call.caller


async def prepare(
    request: Request,
    parse: Callable[[object], tuple[Asked, list[str]]] = parse_responses,
) -> Prepared:
    """Reads a request and what it needs.

    Args:
        request: The HTTP request.
        parse: Checks its JSON.

    Raises:
        ApiError: It is invalid, or needs what is not there.
    """
    asked = await read_json(request, parse)
    if asked.request.truncation == "auto" and not shared(request).settings.response_truncation:
        advice = (
            "shorten the input, or let the operator start the adapter with --response-truncation"
        )
        raise unsupported("truncation", "auto", advice)
    records, caller = records_of(request), caller_of_request()
    records.will_store(asked.request)
    previous_id, body = asked.request.previous_response_id, body_of(request)
    earlier = [] if previous_id is None else await records.earlier(caller, previous_id, body)
    found = await records.found(caller, asked.items, body)
    # Stored items can be as large as a body.
    size = body.size if not (earlier or found) else 2**20
    maximum = shared(request).settings.max_media_mib * 2**20

    def translate() -> Prepared:
        conversation = conversation_of(asked, earlier, found)
        spec = to_spec(conversation, max_media_bytes=maximum)
        return Prepared(conversation, spec, size)

    prepared = await off_loop(size, translate)
    # Not the `x-request-id` header: a gateway may use one for several requests.
    prepared.spec.request_id = name_call(prepared.spec.request_id)
    return prepared
