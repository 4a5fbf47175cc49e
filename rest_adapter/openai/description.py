"""Describes OpenAI's routes for the OpenAPI document."""

from __future__ import annotations

from typing import Final

from rest_adapter.openai.chat.schema import ChatRequest
from rest_adapter.openai.chat.shapes import ChatCompletion, ChatEvent
from rest_adapter.openai.completions.schema import CompletionRenderRequest, CompletionRequest
from rest_adapter.openai.completions.shapes import TextCompletion, TextEvent
from rest_adapter.openai.decisions.schema import DecisionsRequest
from rest_adapter.openai.decisions.shapes import Decision
from rest_adapter.openai.responses.schema import ResponsesRequest
from rest_adapter.openai.responses.shapes import (
    CompactedResponse,
    DeletedResponse,
    InputItems,
    InputTokens,
    ResponseEvent,
    ResponseObject,
)
from rest_adapter.openai.shapes import ErrorBody, Model, ModelList
from rest_adapter.openai.tokens.schema import (
    DetokenizeRequest,
    RenderRequest,
    TokenizeChatRequest,
    TokenizeRequest,
)
from rest_adapter.openai.tokens.shapes import RenderedPrompt, Texts, Tokens
from rest_adapter.openapi.operation import Description, Operation, Parameter


_CHAT: Final = "Chat"
_COMPLETIONS: Final = "Text completions"
_RESPONSES: Final = "Responses"
_DECISIONS: Final = "Decisions"
_MODELS: Final = "Models"
_TOKENS: Final = "Tokens"
_ASKED_TOKENS: Final = TokenizeRequest | TokenizeChatRequest

_INTEGER: Final = {"type": "integer"}
_RESPONSE_ID: Final = Parameter(
    name="response_id",
    place="path",
    description="The id of a stored response.",
    schema={"type": "string"},
)
_REPLAY: Final = (
    Parameter(
        name="stream",
        place="query",
        description="Answer with the events of the response's stream.",
        schema={"type": "boolean", "default": False},
    ),
    Parameter(
        name="starting_after",
        place="query",
        description="Only the events after the one with this sequence number.",
        schema=_INTEGER | {"minimum": -1},
    ),
)
_PAGE: Final = (
    Parameter(
        name="order",
        place="query",
        description="Newest or oldest first.",
        schema={"type": "string", "enum": ["asc", "desc"], "default": "desc"},
    ),
    Parameter(
        name="limit",
        place="query",
        description="Maximum number of items.",
        schema=_INTEGER | {"minimum": 1, "maximum": 100, "default": 20},
    ),
    Parameter(
        name="after",
        place="query",
        description="Only the items after the one with this id.",
        schema={"type": "string"},
    ),
)
_USER: Final = {
    "role": "user",
    "content": [
        {"type": "text", "text": "What is in the picture?"},
        {
            "type": "image_url",
            "image_url": {
                "url": "data:image/png;base64,"
                "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEUlEQVR42mP4z8CAFTEMLQkAKP8/wc53yE8AAAAASUVORK5CYII="
            },
        },
    ],
}
_CHAT_EXAMPLE: Final = {"model": "qwen-vl", "messages": [_USER], "max_tokens": 32}
_COMPLETION_EXAMPLE: Final = {"model": "qwen-vl", "prompt": "Once upon a time", "max_tokens": 16}
_RESPONSE_EXAMPLE: Final = {
    "model": "qwen-vl",
    "input": "Say hello.",
    "max_output_tokens": 32,
}

_OPERATIONS: Final = (
    Operation(
        method="post",
        path="/v1/chat/completions",
        name="createChatCompletion",
        summary="Answers a conversation that may contain images.",
        tag=_CHAT,
        request=ChatRequest,
        example=_CHAT_EXAMPLE,
        answer=ChatCompletion,
        events=ChatEvent,
    ),
    Operation(
        method="post",
        path="/v1/completions",
        name="createCompletion",
        summary="Completes prompts without a chat template.",
        tag=_COMPLETIONS,
        request=CompletionRequest,
        example=_COMPLETION_EXAMPLE,
        answer=TextCompletion,
        events=TextEvent,
    ),
    Operation(
        method="post",
        path="/v1/responses",
        name="createResponse",
        summary="Answers a conversation in the form of the Responses API.",
        tag=_RESPONSES,
        request=ResponsesRequest,
        example=_RESPONSE_EXAMPLE,
        answer=ResponseObject,
        events=ResponseEvent,
    ),
    Operation(
        method="post",
        path="/v1/responses/input_tokens",
        name="countInputTokens",
        summary="Counts the tokens of the input of a response.",
        tag=_RESPONSES,
        request=ResponsesRequest,
        example=_RESPONSE_EXAMPLE,
        answer=InputTokens,
    ),
    Operation(
        method="post",
        path="/v1/responses/render",
        name="renderResponse",
        summary="The prompt of a response, without an answer.",
        tag=_RESPONSES,
        request=ResponsesRequest,
        example=_RESPONSE_EXAMPLE,
        answer=RenderedPrompt,
    ),
    Operation(
        method="post",
        path="/v1/responses/compact",
        name="compactConversation",
        summary="Replaces the answers of a conversation by a summary.",
        tag=_RESPONSES,
        request=ResponsesRequest,
        example=_RESPONSE_EXAMPLE,
        answer=CompactedResponse,
    ),
    Operation(
        method="get",
        path="/v1/responses/{response_id}",
        name="getResponse",
        summary="A stored response, or the events of its stream.",
        tag=_RESPONSES,
        answer=ResponseObject,
        events=ResponseEvent,
        parameters=(_RESPONSE_ID, *_REPLAY),
    ),
    Operation(
        method="delete",
        path="/v1/responses/{response_id}",
        name="deleteResponse",
        summary="Deletes a stored response.",
        tag=_RESPONSES,
        answer=DeletedResponse,
        parameters=(_RESPONSE_ID,),
    ),
    Operation(
        method="post",
        path="/v1/responses/{response_id}/cancel",
        name="cancelResponse",
        summary="Cancels a response that is being streamed.",
        tag=_RESPONSES,
        answer=ResponseObject,
        parameters=(_RESPONSE_ID,),
    ),
    Operation(
        method="get",
        path="/v1/responses/{response_id}/input_items",
        name="listInputItems",
        summary="The items that a stored response was created from.",
        tag=_RESPONSES,
        answer=InputItems,
        parameters=(_RESPONSE_ID, *_PAGE),
    ),
    Operation(
        method="post",
        path="/v1/decisions",
        name="createDecisions",
        summary="Decides questions about one input by the model's own probabilities.",
        tag=_DECISIONS,
        request=DecisionsRequest,
        example={
            "model": "qwen-vl",
            "input": "Parcel 7 is torn.",
            "questions": [{"type": "predicate", "instructions": "The parcel is torn."}],
        },
        answer=Decision,
    ),
    Operation(
        method="post",
        path="/v1/chat/completions/render",
        name="renderChatCompletion",
        summary="The prompt of a chat completion, without an answer.",
        tag=_TOKENS,
        request=RenderRequest,
        example=_CHAT_EXAMPLE,
        answer=RenderedPrompt,
    ),
    Operation(
        method="post",
        path="/v1/completions/render",
        name="renderCompletion",
        summary="The prompts of a text completion, without answers.",
        tag=_TOKENS,
        request=CompletionRenderRequest,
        example=_COMPLETION_EXAMPLE,
        answer=list[RenderedPrompt],
    ),
    Operation(
        method="post",
        path="/tokenize",
        name="tokenize",
        summary="The token ids of a text, or of the prompt of a conversation.",
        tag=_TOKENS,
        request=_ASKED_TOKENS,
        example={"model": "qwen-vl", "prompt": "Once upon a time", "return_token_strs": True},
        answer=Tokens,
    ),
    Operation(
        method="post",
        path="/detokenize",
        name="detokenize",
        summary="The text of token ids.",
        tag=_TOKENS,
        request=DetokenizeRequest,
        example={"model": "qwen-vl", "tokens": [1, 2, 3]},
        answer=Texts,
    ),
    Operation(
        method="get",
        path="/v1/models",
        name="listModels",
        summary="The served models, the canonical name first.",
        tag=_MODELS,
        answer=ModelList,
    ),
    Operation(
        method="get",
        path="/v1/models/{name}",
        name="getModel",
        summary="One served model.",
        tag=_MODELS,
        answer=Model,
        parameters=(
            Parameter(
                name="name",
                place="path",
                description="A served name; it may contain slashes.",
                schema={"type": "string", "minLength": 1},
            ),
        ),
    ),
)

DESCRIPTION: Final = Description(
    error="OpenAIError",
    error_body=ErrorBody,
    security={
        "bearer": {"type": "http", "scheme": "bearer"},
        "xApiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        "apiKey": {"type": "apiKey", "in": "header", "name": "api-key"},
    },
    operations=_OPERATIONS,
)
