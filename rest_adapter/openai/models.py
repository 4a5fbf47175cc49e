"""The routes GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fastapi import APIRouter, Request, Response
import grpc
import orjson

from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from rest_adapter.errors import from_rpc, of_reason
from rest_adapter.state import call_metadata, shared


router: Final = APIRouter()
_MODALITIES: Final = {usage_pb.MODALITY_TEXT: "text", usage_pb.MODALITY_IMAGE: "image"}


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    """All served names, the canonical one first."""
    try:
        models = await shared(request).service.list_models(metadata=call_metadata(request))
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error) from error
    document = {"object": "list", "data": [_document(model) for model in models]}
    return Response(orjson.dumps(document), media_type="application/json")


@router.get("/v1/models/{name:path}")
async def get_model(request: Request, name: str) -> Response:
    """One served name, which may contain slashes."""
    if not name:  # over gRPC that is the canonical model
        message = "The path names no model; GET /v1/models lists them."
        raise of_reason("MODEL_NOT_FOUND", message, param="model")
    try:
        model = await shared(request).service.get_model(name, metadata=call_metadata(request))
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error) from error
    return Response(orjson.dumps(_document(model)), media_type="application/json")


def _document(value: model_pb.Model) -> Mapping[str, Any]:
    """OpenAI's `model`, with vLLM's `max_model_len`, the kinds of input, limits of images and features."""
    limits = value.image_limits
    return {
        "id": value.name,
        "object": "model",
        "created": value.created,
        "owned_by": "qwen-vl-serving",
        "root": value.canonical_name,
        "max_model_len": value.max_context_tokens,
        "input_modalities": [
            _MODALITIES[modality] for modality in value.input_modalities if modality in _MODALITIES
        ],
        "image_limits": {
            "max_images": limits.max_images,
            "pixel_step": limits.pixel_step,
            "min_pixels": limits.min_pixels,
            "max_pixels": limits.max_pixels,
            "max_decoded_pixels": limits.max_decoded_pixels,
            "exif_transposed": limits.exif_transposed,
        },
        "features": list(value.features),
    }
