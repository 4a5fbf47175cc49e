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
    RenderedMessages,
    TokenCount,
)
from rest_adapter.anthropic.model_shapes import ModelInfo, ModelPage
from rest_adapter.openapi.operation import Description, Operation, Parameter


_TAG: Final = "Anthropic Messages"
_EXAMPLE: Final = {
    "model": "qwen-vl",
    "max_tokens": 32,
    "messages": [{"role": "user", "content": "Say hello."}],
}

_VERSION: Final = Parameter(
    name="anthropic-version",
    place="header",
    description="With any value, answer and errors have Anthropic's form.",
    schema={"type": "string"},
)
_PAGE: Final = (
    Parameter(
        name="limit",
        place="query",
        description="Maximum number of models; only in Anthropic's form, as `after_id`, `before_id`, `lifecycle`.",
        schema={"type": "integer", "minimum": 1, "maximum": 1000, "default": 20},
    ),
    *(
        Parameter(
            name=name,
            place="query",
            description=f"The id of a model: those {which} it.",
            schema={"type": "string"},
        )
        for name, which in (("after_id", "behind"), ("before_id", "before"))
    ),
    Parameter(
        name="lifecycle[]",
        place="query",
        description="The stages of the models; every served one is active.",
        schema={"type": "array", "items": {"enum": ["active", "deprecated", "retired"]}},
    ),
)
_NAME: Final = Parameter(
    name="name", place="path", description="A served name.", schema={"type": "string"}
)

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
        Operation(
            method="post",
            path=f"{PATH}/render",
            name="renderMessage",
            summary="The prompt of a conversation, without an answer.",
            tag=_TAG,
            request=CreateMessageRequest,
            example=_EXAMPLE,
            answer=RenderedMessages,
        ),
        Operation(
            method="get",
            path="/v1/models",
            name="listModelInfo",
            summary="The served models.",
            tag=_TAG,
            answer=ModelPage,
            parameters=(_VERSION, *_PAGE),
        ),
        Operation(
            method="get",
            path="/v1/models/{name}",
            name="getModelInfo",
            summary="One served model.",
            tag=_TAG,
            answer=ModelInfo,
            parameters=(_NAME, _VERSION),
        ),
    ),
    overloaded=(OVERLOADED,),
)
