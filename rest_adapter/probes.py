"""The routes GET /health, /ready and /version."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request, Response
import orjson

from rest_adapter.errors import of_reason
from rest_adapter.state import shared


router: Final = APIRouter()


@router.get("/health")
async def health() -> Response:
    """200 while the adapter runs, regardless of the service."""
    return _json({"status": "ok"})


@router.get("/ready")
async def ready(request: Request) -> Response:
    """200 while the service is ready."""
    if not await shared(request).service.ready():
        raise of_reason("ENGINE_UNAVAILABLE", "The inference service is not ready.")
    return _json({"status": "ready"})


@router.get("/version")
async def version(request: Request) -> Response:
    """The version of this software."""
    return _json({"version": shared(request).version})


def _json(document: dict[str, str]) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")
