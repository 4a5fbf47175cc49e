"""Anthropic's dialect: where keys are, its error body, and streams that end with an event of their own."""

from __future__ import annotations

from typing import Final

from starlette.datastructures import Headers

from qwenvl.keys import key_of
from rest_adapter.anthropic.description import DESCRIPTION
from rest_adapter.anthropic.errors import render_error, render_error_event, status_of
from rest_adapter.anthropic.messages.route import PATH, router
from rest_adapter.anthropic.models import model, model_list
from rest_adapter.dialect import Dialect, ModelForm


def _authorizations_of(headers: Headers) -> list[str]:
    own = headers.get("x-api-key", "").strip()
    found = [value for value in headers.getlist("authorization") if key_of(value)]
    return ([f"Bearer {own}"] if own else []) + found


ANTHROPIC: Final = Dialect(
    prefix=PATH,
    router=router,
    authorizations_of=_authorizations_of,
    challenge="Bearer",
    render_error=render_error,
    render_error_event=render_error_event,
    stream_end=b"",  # the last event of an answer, `message_stop`, is the end
    status_of=status_of,
    heartbeat=b'event: ping\ndata: {"type":"ping"}\n\n',
    request_id_header="request-id",
    description=DESCRIPTION,
    models=ModelForm(one=model, several=model_list),
    header="anthropic-version",
)
