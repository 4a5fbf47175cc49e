"""Serves ChatService: chat completions, their prompts, and token counts."""

from __future__ import annotations

from collections.abc import AsyncIterator
import contextlib
from functools import partial

from inference_service.backend.base import Backend
from inference_service.domain import ChatRequest
from inference_service.grpc_api import work
from inference_service.grpc_api.call_context import Context, this_call
from inference_service.grpc_api.generation import Generation
from inference_service.grpc_api.packed import Packed, packed
from inference_service.grpc_api.requests import chat_request
from inference_service.grpc_api.responses import image_message, usage_message
from inference_service.grpc_api.wire import message_bytes
from inference_service.settings import ServiceSettings
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc


class ChatServicer(chat_grpc.ChatServiceServicer):
    """Serves ChatService."""

    def __init__(self, backend: Backend, settings: ServiceSettings) -> None:
        self._generation = Generation(backend)
        self._settings = settings

    async def CreateChatCompletion(  # noqa: N802 - the proto's name
        self, request: chat_pb.CreateChatCompletionRequest, context: Context
    ) -> Packed:
        """Answers in one message."""
        del context
        asked = await self._domain_request(request.spec)
        del request
        return await self._generation.unary(asked)

    async def StreamChatCompletion(  # noqa: N802
        self, request: chat_pb.StreamChatCompletionRequest, context: Context
    ) -> AsyncIterator[chat_pb.StreamChatCompletionResponse]:
        """Streams every event of the answer."""
        del context
        asked = await self._domain_request(request.spec)
        del request
        async with contextlib.aclosing(self._generation.stream_fields(asked)) as stream:
            async for fields in stream:
                yield chat_pb.StreamChatCompletionResponse(**fields)

    async def CountTokens(  # noqa: N802
        self, request: chat_pb.CountTokensRequest, context: Context
    ) -> Packed:
        """Counts the tokens of the prompt without generating an answer."""
        del context
        asked = await self._domain_request(request.spec)
        del request
        count = await self._generation.count(asked)
        token_ids = count.prompt_token_ids if asked.return_prompt_token_ids else ()
        images = map(image_message, count.images)
        response = chat_pb.CountTokensResponse(usage=usage_message(count.usage), images=images)
        return await work.for_size(
            work.BYTES_PER_TOKEN * len(token_ids),
            lambda: packed(response, prompt_token_ids=token_ids),
        )

    async def RenderChatCompletion(  # noqa: N802
        self, request: chat_pb.RenderChatCompletionRequest, context: Context
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
                chat_pb.RenderChatCompletionResponse(
                    **prompt.fields(), begins_with_reasoning=prompt.rendered.begins_with_reasoning
                ),
                token_strings=prompt.strings,
            ),
        )

    async def _domain_request(self, spec: chat_pb.ChatCompletionSpec) -> ChatRequest:
        model = self._generation.canonical_name(spec.model)
        convert = partial(chat_request, spec, model, this_call().request_id, self._settings)
        has_schemas = (
            spec.HasField("constraint") or len(spec.tools) > 0
        )  # of which small ones may take long
        return await work.for_size(message_bytes(), convert, is_costly=has_schemas)
