"""OpenAI's dialect: where keys are, its error body, and streams that end with `[DONE]`."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter
from starlette.datastructures import Headers

from qwenvl.keys import key_of
from rest_adapter.dialect import Dialect, ModelForm
from rest_adapter.openai.chat import route as chat
from rest_adapter.openai.completions import route as completions
from rest_adapter.openai.decisions import route as decisions
from rest_adapter.openai.description import DESCRIPTION
from rest_adapter.openai.errors import render_error, render_error_event
from rest_adapter.openai.models import model, model_list
from rest_adapter.openai.responses import compact_route as compaction
from rest_adapter.openai.responses import route as responses
from rest_adapter.openai.responses import stored_route as stored_responses
from rest_adapter.openai.tokens import route as tokens


# Those of other APIs: OpenAI's clients insist on a key of their own, so that users put any word there.
_KEY_HEADERS: Final = ("x-api-key", "api-key")


def _authorizations_of(headers: Headers) -> list[str]:
    found = [value for value in headers.getlist("authorization") if key_of(value)]
    return found + [
        f"Bearer {headers[name].strip()}" for name in _KEY_HEADERS if headers.get(name, "").strip()
    ]


OPENAI: Final = Dialect(
    prefix="/v1",
    router=APIRouter(
        routes=[
            route
            for group in (
                chat,
                completions,
                decisions,
                responses,
                compaction,
                stored_responses,
                tokens,
            )
            for route in group.router.routes
        ]
    ),
    authorizations_of=_authorizations_of,
    challenge="Bearer",
    render_error=render_error,
    render_error_event=render_error_event,
    stream_end=b"data: [DONE]\n\n",
    lifespan=responses.lifespan,
    description=DESCRIPTION,
    models=ModelForm(one=model, several=model_list),
)
