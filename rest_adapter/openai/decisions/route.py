"""The route POST /v1/decisions."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request, Response

from qwenvl.observability import name_call
from rest_adapter.body import body_of
from rest_adapter.json_body import read_json
from rest_adapter.off_loop import off_loop
from rest_adapter.openai.decisions import translate
from rest_adapter.openai.decisions.schema import parse_decisions
from rest_adapter.reply import json_reply
from rest_adapter.state import call_metadata, shared


router: Final = APIRouter()


@router.post("/v1/decisions")
async def create_decisions(request: Request) -> Response:
    """Decides questions about one input."""
    asked = await read_json(request, parse_decisions)
    state = shared(request)
    size = body_of(request).size
    spec = await off_loop(
        size,
        translate.to_spec,
        asked,
        max_media_bytes=state.settings.max_media_mib * 2**20,
    )
    spec.request_id = name_call(spec.request_id)
    return await json_reply(
        request,
        state.service.create_decisions(spec, metadata=call_metadata(request), spec_bytes=size),
        lambda response: translate.document(response, asked),
        translate.FieldPaths(asked).param_of,
    )
