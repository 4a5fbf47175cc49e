"""CompletionService: text completions, which continue a prompt as it is written."""

from __future__ import annotations

from collections.abc import AsyncIterator
import contextlib

from inference_service.backend.base import Backend
from inference_service.domain import RawRequest
from inference_service.grpc_api.generation import Context, Generation
from inference_service.grpc_api.interceptors import request_id_of_call
from inference_service.grpc_api.requests import raw_request
from inference_service.settings import ServiceSettings
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import completion_service_pb2_grpc as completion_grpc


class CompletionServicer(completion_grpc.CompletionServiceServicer):
    """Continues prompts."""

    def __init__(self, backend: Backend, settings: ServiceSettings) -> None:
        self._generation = Generation(backend, settings)
        self._settings = settings

    async def CreateCompletion(  # noqa: N802 - the proto's name
        self, request: completion_pb.CreateCompletionRequest, context: Context
    ) -> completion_pb.CreateCompletionResponse:
        """Gathers the events of a request into one message."""
        asked = self._domain_request(request.spec)
        fields = await self._generation.whole_fields(asked, context)
        return completion_pb.CreateCompletionResponse(**fields)

    async def StreamCompletion(  # noqa: N802
        self, request: completion_pb.StreamCompletionRequest, context: Context
    ) -> AsyncIterator[completion_pb.StreamCompletionResponse]:
        """Sends every event as it comes."""
        asked = self._domain_request(request.spec)
        async with contextlib.aclosing(self._generation.stream_fields(asked, context)) as stream:
            async for fields in stream:
                yield completion_pb.StreamCompletionResponse(**fields)

    def _domain_request(self, spec: completion_pb.CompletionSpec) -> RawRequest:
        model = self._generation.canonical_name(spec.model)
        return raw_request(spec, model, request_id_of_call.get(), self._settings)
