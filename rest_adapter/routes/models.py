"""GET /v1/models and /v1/models/{id}.

Owns OpenAI's list of models.
"""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request, Response
import grpc
import orjson

from rest_adapter import translate
from rest_adapter.errors import from_rpc
from rest_adapter.routes.state import caller, shared


router: Final = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    """All served names, the canonical one first."""
    try:
        models = await shared(request).backend.list_models(caller(request))
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error) from error
    document = {"object": "list", "data": [translate.model(model) for model in models]}
    return Response(orjson.dumps(document), media_type="application/json")


@router.get("/v1/models/{name:path}")
async def get_model(request: Request, name: str) -> Response:
    """One served name, which may contain slashes."""
    try:
        model = await shared(request).backend.get_model(name, caller(request))
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error) from error
    return Response(orjson.dumps(translate.model(model)), media_type="application/json")
