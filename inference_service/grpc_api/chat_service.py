"""ChatService: the proto's face of `Completions` for conversations.

Owns the methods of the service.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
import contextlib

from inference_service.domain import ChatRequest
from inference_service.grpc_api.answering import Answering, until
from inference_service.grpc_api.call_context import Context, this_call
from inference_service.grpc_api.requests import chat_request
from inference_service.grpc_api.responses import (
    gather,
    image_message,
    stream_fields,
    usage_message,
)
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc


class ChatServicer(Answering, chat_grpc.ChatServiceServicer):
    """Answers conversations."""

    async def CreateChatCompletion(  # noqa: N802 - the proto's name
        self, request: chat_pb.CreateChatCompletionRequest, context: Context
    ) -> chat_pb.CreateChatCompletionResponse:
        """Gathers the events of a request into one message."""
        del context
        asked = self._domain_request(request.spec)
        async with contextlib.aclosing(self._events(asked)) as events:
            whole = await gather(events, asked.model)
        return chat_pb.CreateChatCompletionResponse(**whole.fields())

    async def StreamChatCompletion(  # noqa: N802
        self, request: chat_pb.StreamChatCompletionRequest, context: Context
    ) -> AsyncIterator[chat_pb.StreamChatCompletionResponse]:
        """Sends every event as it comes."""
        del context
        asked = self._domain_request(request.spec)
        async with contextlib.aclosing(self._events(asked)) as events:
            async for event in events:
                yield chat_pb.StreamChatCompletionResponse(**stream_fields(event, asked.model))

    async def CountTokens(  # noqa: N802
        self, request: chat_pb.CountTokensRequest, context: Context
    ) -> chat_pb.CountTokensResponse:
        """Does all that precedes the engine."""
        del context
        asked = self._domain_request(request.spec)
        call = this_call()
        async with until(call.deadline):
            prepared = await self._completions.count(asked, call.caller)
        ids = prepared.prompt.token_ids if asked.return_prompt_token_ids else ()
        return chat_pb.CountTokensResponse(
            usage=usage_message(prepared.usage),
            images=map(image_message, prepared.infos),
            prompt_token_ids=ids,
        )

    def _domain_request(self, spec: chat_pb.ChatCompletionSpec) -> ChatRequest:
        model = self._canonical(spec.model)
        return chat_request(spec, model, this_call().request_id, self._settings)
