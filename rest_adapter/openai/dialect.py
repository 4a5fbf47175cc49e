"""OpenAI's dialect: bearer keys, its error body, and streams that end with `[DONE]`."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter
from starlette.datastructures import Headers

from rest_adapter.dialect import Dialect
from rest_adapter.openai import models
from rest_adapter.openai.chat import route as chat
from rest_adapter.openai.completions import route as completions
from rest_adapter.openai.errors import render_error, render_error_event


def _authorization_of(headers: Headers) -> str | None:
    return headers.get("authorization")


def _router() -> APIRouter:
    router = APIRouter()
    for group in (chat, completions, models):
        router.include_router(group.router)
    return router


OPENAI: Final = Dialect(
    prefix="/v1",
    router=_router(),
    authorization_of=_authorization_of,
    challenge="Bearer",
    render_error=render_error,
    render_error_event=render_error_event,
    stream_end=b"data: [DONE]\n\n",
)
