"""Serves CompletionService: text completions, without a chat template."""

from __future__ import annotations

from collections.abc import AsyncIterator
import contextlib
from functools import partial

from inference_service.backend.base import Backend
from inference_service.domain import TextCompletionRequest
from inference_service.grpc_api import work
from inference_service.grpc_api.call_context import Context, this_call
from inference_service.grpc_api.generation import Generation
from inference_service.grpc_api.packed import Packed, packed
from inference_service.grpc_api.requests import text_completion_request
from inference_service.grpc_api.wire import message_bytes
from inference_service.settings import ServiceSettings
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import completion_service_pb2_grpc as completion_grpc


class CompletionServicer(completion_grpc.CompletionServiceServicer):
    """Serves CompletionService."""

    def __init__(self, backend: Backend, settings: ServiceSettings) -> None:
        self._generation = Generation(backend)
        self._settings = settings

    async def CreateCompletion(  # noqa: N802 - the proto's name
        self, request: completion_pb.CreateCompletionRequest, context: Context
    ) -> Packed:
        """Answers in one message."""
        del context
        asked = await self._domain_request(request.spec)
        del request
        return await self._generation.unary(asked)

    async def StreamCompletion(  # noqa: N802
        self, request: completion_pb.StreamCompletionRequest, context: Context
    ) -> AsyncIterator[completion_pb.StreamCompletionResponse]:
        """Streams every event of the answer."""
        del context
        asked = await self._domain_request(request.spec)
        del request
        async with contextlib.aclosing(self._generation.stream_fields(asked)) as stream:
            async for fields in stream:
                yield completion_pb.StreamCompletionResponse(**fields)

    async def RenderCompletion(  # noqa: N802
        self, request: completion_pb.RenderCompletionRequest, context: Context
    ) -> Packed:
        """Returns the prompt without generating an answer."""
        del context
        asked = await self._domain_request(request.spec)
        strings = request.return_token_strings
        del request
        prompt = await self._generation.render(asked, strings=strings)
        return await work.for_size(
            prompt.size,
            lambda: packed(
                completion_pb.RenderCompletionResponse(**prompt.fields()),
                token_strings=prompt.strings,
            ),
        )

    async def _domain_request(self, spec: completion_pb.CompletionSpec) -> TextCompletionRequest:
        model = self._generation.canonical_name(spec.model)
        call_id = this_call().request_id
        convert = partial(text_completion_request, spec, model, call_id, self._settings)
        has_schemas = spec.HasField("constraint")  # of which small ones may take long
        return await work.for_size(message_bytes(), convert, is_costly=has_schemas)
