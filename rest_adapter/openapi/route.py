"""The routes GET /openapi.json and GET /docs, which hold nothing secret and need no key."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from fastapi import APIRouter, Response
import orjson

from rest_adapter.openapi.document import build_document
from rest_adapter.openapi.operation import Description
from rest_adapter.openapi.page import POLICY, render_page


def make_router(descriptions: Sequence[Description], version: str, *, needs_key: bool) -> APIRouter:
    """The routes that describe the API.

    Args:
        descriptions: What is served.
        version: Version of this software.
        needs_key: Whether requests need an API key.
    """
    router = APIRouter()

    @cache  # made when somebody asks
    def document() -> dict[str, Any]:
        return build_document(descriptions, version, needs_key=needs_key)

    @router.get("/openapi.json")
    def openapi() -> Response:
        """The OpenAPI document."""
        return Response(orjson.dumps(document()), media_type="application/json")

    @router.get("/docs")
    def docs() -> Response:
        """The document as a page."""
        headers = {
            "content-security-policy": POLICY,
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
            "x-frame-options": "DENY",
        }
        return Response(render_page(document()), media_type="text/html", headers=headers)

    return router
