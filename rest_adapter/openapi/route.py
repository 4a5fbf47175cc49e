"""The routes GET /openapi.json and GET /docs, which hold nothing secret and need no key."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from fastapi import APIRouter, Response
import orjson

from rest_adapter.openapi.document import build_document
from rest_adapter.openapi.operation import Description
from rest_adapter.openapi.page import POLICY, render_page


_Made = TypeVar("_Made")


def make_router(descriptions: Sequence[Description], version: str, *, needs_key: bool) -> APIRouter:
    """The routes that describe the API.

    Args:
        descriptions: What is served.
        version: Version of this software.
        needs_key: Whether requests need an API key.
    """
    router = APIRouter()

    def made() -> tuple[bytes, bytes]:
        document = build_document(descriptions, version, needs_key=needs_key)
        return orjson.dumps(document), render_page(document).encode()

    pages = _Once(made)

    @router.get("/openapi.json")
    async def openapi() -> Response:
        """The OpenAPI document."""
        document, _ = await pages.get()
        return Response(document, media_type="application/json")

    @router.get("/docs")
    async def docs() -> Response:
        """The document as a page."""
        headers = {
            "content-security-policy": POLICY,
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
            "x-frame-options": "DENY",
        }
        _, page = await pages.get()
        return Response(page, media_type="text/html", headers=headers)

    return router


class _Once(Generic[_Made]):
    """Makes something in a thread when somebody asks for the first time.

    Everybody gets the same: thousands of connections that do not read a page must not have a copy each.
    """

    def __init__(self, make: Callable[[], _Made]) -> None:
        self._make = make
        self._task: asyncio.Task[_Made] | None = None

    async def get(self) -> _Made:
        """What was made."""
        if self._task is None:
            self._task = asyncio.create_task(asyncio.to_thread(self._make))
        return await asyncio.shield(self._task)
