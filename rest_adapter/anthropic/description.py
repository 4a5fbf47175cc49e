"""Describes Anthropic's routes for the OpenAPI document."""

from __future__ import annotations

from typing import Final

from rest_adapter.anthropic.errors import OVERLOADED
from rest_adapter.anthropic.messages.route import PATH
from rest_adapter.anthropic.messages.schema import CreateMessageRequest, MessagesRequest
from rest_adapter.anthropic.messages.shapes import (
    AnsweredMessage,
    MessageEvent,
    MessagesError,
    TokenCount,
)
from rest_adapter.openapi.operation import Description, Operation


_TAG: Final = "Anthropic Messages"
_EXAMPLE: Final = {
    "model": "qwen-vl",
    "max_tokens": 32,
    "messages": [{"role": "user", "content": "Say hello."}],
}

DESCRIPTION: Final = Description(
    error="AnthropicError",
    error_body=MessagesError,
    security={
        "xApiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        "bearer": {"type": "http", "scheme": "bearer"},
    },
    operations=(
        Operation(
            method="post",
            path=PATH,
            name="createMessage",
            summary="Answers a conversation in the form of Anthropic's API.",
            tag=_TAG,
            request=CreateMessageRequest,
            example=_EXAMPLE,
            answer=AnsweredMessage,
            events=MessageEvent,
        ),
        Operation(
            method="post",
            path=f"{PATH}/count_tokens",
            name="countTokens",
            summary="Counts the tokens of a conversation, images included.",
            tag=_TAG,
            request=MessagesRequest,
            example=_EXAMPLE,
            answer=TokenCount,
        ),
    ),
    overloaded=(OVERLOADED,),
)
