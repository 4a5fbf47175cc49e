"""OpenAI's JSON of the served models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from starlette.datastructures import QueryParams

from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb


_MODALITIES: Final = {usage_pb.MODALITY_TEXT: "text", usage_pb.MODALITY_IMAGE: "image"}


def model_list(models: Sequence[model_pb.Model], params: QueryParams) -> dict[str, Any]:
    """OpenAI's list of models, whose query has no parameters."""
    del params
    return {"object": "list", "data": [model(each) for each in models]}


def model(value: model_pb.Model) -> dict[str, Any]:
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
