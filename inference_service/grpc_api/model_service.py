"""Serves ModelService: the served models and their features."""

from __future__ import annotations

from typing import Final

from inference_service.backend.base import (
    Backend,
    CoordinateConvention,
    ImageLimits,
    Modality,
    ModelDescription,
)
from inference_service.grpc_api.call_context import Context
from inference_service.grpc_api.model_names import canonical_name
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import model_service_pb2_grpc as model_grpc
from qwenvl.inference.v1 import usage_pb2 as usage_pb


_CONVENTIONS: Final = {
    CoordinateConvention.NONE: model_pb.COORDINATE_CONVENTION_UNSPECIFIED,
    CoordinateConvention.PER_MILLE: model_pb.COORDINATE_CONVENTION_PER_MILLE,
    CoordinateConvention.PROCESSED_PIXELS: model_pb.COORDINATE_CONVENTION_PROCESSED_PIXELS,
}
_MODALITIES: Final = {
    Modality.TEXT: usage_pb.MODALITY_TEXT,
    Modality.IMAGE: usage_pb.MODALITY_IMAGE,
    Modality.VIDEO: usage_pb.MODALITY_VIDEO,
}


class ModelServicer(model_grpc.ModelServiceServicer):
    """Serves ModelService."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def ListModels(  # noqa: N802 - the proto's name
        self, request: model_pb.ListModelsRequest, context: Context
    ) -> model_pb.ListModelsResponse:
        """All served names."""
        del request, context
        description = self._backend.describe()
        models = [_model_message(name, description) for name in description.names]
        return model_pb.ListModelsResponse(models=models)

    async def GetModel(  # noqa: N802
        self, request: model_pb.GetModelRequest, context: Context
    ) -> model_pb.GetModelResponse:
        """One served name."""
        del context
        canonical = canonical_name(request.name, self._backend.names, field="name")
        model = _model_message(request.name or canonical, self._backend.describe())
        return model_pb.GetModelResponse(model=model)


def _model_message(name: str, description: ModelDescription) -> model_pb.Model:
    memory = description.memory
    return model_pb.Model(
        name=name,
        canonical_name=description.names[0],
        family=description.family,
        created=description.created,
        input_modalities=[_MODALITIES[modality] for modality in description.modalities],
        max_context_tokens=description.max_context_tokens,
        image_limits=_image_limits_message(description.image_limits),
        coordinate_convention=_CONVENTIONS[description.coordinate_convention],
        url_schemes=description.url_schemes,
        features=description.features,
        parts=[
            model_pb.ModulePart(name=part, parameter_count=count)
            for part, count in description.parts
        ],
        parameter_count=sum(count for _, count in description.parts),
        memory=model_pb.MemoryNeed(
            weight_bytes=memory.weight_bytes,
            kv_bytes_per_token=memory.kv_bytes_per_token,
            kv_cache_bytes=memory.kv_cache_bytes,
        ),
        revision=description.revision,
    )


def _image_limits_message(limits: ImageLimits) -> model_pb.ImageLimits:
    return model_pb.ImageLimits(
        max_images=limits.max_images,
        pixel_step=limits.pixel_step,
        min_pixels=limits.min_pixels,
        max_pixels=limits.max_pixels,
        max_decoded_pixels=limits.max_decoded_pixels,
        exif_transposed=limits.exif_transposed,
    )
