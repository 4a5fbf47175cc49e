"""The routes GET /v1/models and /v1/models/{id}, which several dialects have, each in its own form."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request, Response
import grpc
import orjson

from rest_adapter.dialect import MODELS_PATH, ModelForm, dialect_of
from rest_adapter.errors import from_rpc, of_reason
from rest_adapter.state import call_metadata, shared


router: Final = APIRouter()


@router.get(MODELS_PATH)
async def list_models(request: Request) -> Response:
    """All served names, the canonical one first."""
    form = _form_for(request)
    try:
        models = await shared(request).service.list_models(metadata=call_metadata(request))
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error) from error
    return _json(form.several(models, request.query_params))


@router.get(f"{MODELS_PATH}/{{name:path}}")
async def get_model(request: Request, name: str) -> Response:
    """One served name, which may contain slashes."""
    if not name:  # over gRPC that is the canonical model
        message = f"The path names no model; GET {MODELS_PATH} lists them."
        raise of_reason("MODEL_NOT_FOUND", message, param="model")
    try:
        model = await shared(request).service.get_model(name, metadata=call_metadata(request))
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error) from error
    return _json(_form_for(request).one(model))


def _form_for(request: Request) -> ModelForm:
    form = dialect_of(request.scope).models
    assert form is not None
    return form


def _json(document: object) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")
