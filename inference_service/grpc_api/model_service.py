"""ModelService: what is served and what it can do.

Owns the description of a model.
"""

from __future__ import annotations

from typing import Any

import grpc.aio

from inference_service.backend.served_model import ServedModel
from inference_service.engine_client.interface import Engine
from inference_service.errors import ModelNotFoundError
from inference_service.families.footprint import footprint
from inference_service.media.fetch import FetchPolicy
from inference_service.model_spec import BoxNotation, ModelSpec
from inference_service.settings import ServiceSettings
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import model_service_pb2_grpc as model_grpc
from qwenvl.inference.v1 import usage_pb2 as usage_pb


_CONVENTIONS = {
    BoxNotation.NONE: model_pb.COORDINATE_CONVENTION_UNSPECIFIED,
    BoxNotation.REF_BOX: model_pb.COORDINATE_CONVENTION_PER_MILLE,
    BoxNotation.OBJECT_REF: model_pb.COORDINATE_CONVENTION_PER_MILLE,
    BoxNotation.JSON_PIXELS: model_pb.COORDINATE_CONVENTION_PROCESSED_PIXELS,
    BoxNotation.JSON_PER_MILLE: model_pb.COORDINATE_CONVENTION_PER_MILLE,
}


Context = grpc.aio.ServicerContext[Any, Any]


class ModelServicer(model_grpc.ModelServiceServicer):
    """Tells which models are served."""

    def __init__(self, model: ServedModel, engine: Engine, settings: ServiceSettings) -> None:
        self._model = model
        self._engine = engine
        self._settings = settings

    async def ListModels(  # noqa: N802 - the proto's name
        self, request: model_pb.ListModelsRequest, context: Context
    ) -> model_pb.ListModelsResponse:
        """All served names."""
        del request, context
        return model_pb.ListModelsResponse(models=map(self._describe, self._model.names))

    async def GetModel(  # noqa: N802
        self, request: model_pb.GetModelRequest, context: Context
    ) -> model_pb.GetModelResponse:
        """One served name."""
        del context
        if request.name not in self._model.names:
            raise ModelNotFoundError(
                f"The model {request.name[:100]!r} is not served here.",
                field="name",
                metadata={"model": request.name[:100]},
            )
        return model_pb.GetModelResponse(model=self._describe(request.name))

    def _describe(self, name: str) -> model_pb.Model:
        model, settings, ready = self._model, self._settings, self._engine.ready
        spec, policy = model.spec, model.spec.image_policy
        boxes = model.box_notation
        size = footprint(spec, ready.dtype if ready else spec.checkpoint_dtype)
        window = ready.max_model_len if ready else settings.max_model_len
        return model_pb.Model(
            name=name,
            canonical_name=model.name,
            family=size.family,
            created=model.created,
            input_modalities=[
                usage_pb.MODALITY_TEXT,
                usage_pb.MODALITY_IMAGE,
                *([] if spec.video is None else [usage_pb.MODALITY_VIDEO]),
            ],
            max_context_tokens=window or size.window_tokens,
            image_limits=model_pb.ImageLimits(
                max_images=min(settings.max_images, policy.max_images or settings.max_images),
                pixel_step=policy.pixel_step,
                min_pixels=policy.min_pixels,
                max_pixels=policy.max_pixels,
                max_decoded_pixels=settings.max_image_pixels,
                exif_transposed=policy.exif_transpose,
            ),
            coordinate_convention=_CONVENTIONS[boxes],
            url_schemes=FetchPolicy.from_settings(settings).url_schemes,
            features=_features(spec, boxes),
            parts=[
                model_pb.ModulePart(name=part, parameter_count=count) for part, count in size.parts
            ],
            parameter_count=size.parameter_count,
            memory=model_pb.MemoryNeed(
                weight_bytes=size.weight_bytes,
                kv_bytes_per_token=size.kv_bytes_per_token,
                kv_cache_bytes=(
                    ready.kv_pages_total * ready.kv_page_tokens * size.kv_bytes_per_token
                    if ready
                    else 0
                ),
            ),
            revision=model.revision,
        )


def _features(spec: ModelSpec, boxes: BoxNotation) -> list[str]:
    """What the service can do with a model beyond continuing prompts."""
    chat = ["chat", "continue_final_message"] if spec.is_chat else []
    grounding = ["grounding"] if boxes is not BoxNotation.NONE else []
    return ["logprobs", "prompt_logprobs", *chat, *grounding]
