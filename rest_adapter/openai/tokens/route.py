"""The routes POST /tokenize, /detokenize and /v1/chat/completions/render."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import tokenize_service_pb2 as tokenize_pb
from qwenvl.observability import name_call
from rest_adapter.body import body_of
from rest_adapter.json_body import read_json
from rest_adapter.off_loop import off_loop
from rest_adapter.openai.answer import usage
from rest_adapter.openai.chat import translate
from rest_adapter.openai.tokens import answer
from rest_adapter.openai.tokens.schema import (
    AskedPrompt,
    DetokenizeRequest,
    lists_of,
    parse_detokenize,
    parse_render,
    parse_tokenize,
)
from rest_adapter.rendered import rendered_prompt
from rest_adapter.reply import CollectedAnswers, json_reply
from rest_adapter.state import call_metadata, shared


router: Final = APIRouter()
_PARAMS: Final = {"text": "prompt", "token_ids": "tokens"}


@router.post("/tokenize")
async def tokenize(request: Request) -> Response:
    """The token ids of a text, or of the prompt of a conversation."""
    asked = await read_json(request, parse_tokenize)
    if isinstance(asked, AskedPrompt):
        return await _rendered(request, asked, answer.tokens_of_prompt)
    message = tokenize_pb.TokenizeRequest(
        model=asked.model or "",
        text=asked.prompt,
        parse_special=asked.parse_special is not False,
        return_token_strings=bool(asked.return_token_strs),
    )
    return await json_reply(
        request,
        shared(request).service.tokenize(message, metadata=call_metadata(request)),
        lambda found: answer.tokens(found, strings=message.return_token_strings),
        _param_of,
    )


@router.post("/detokenize")
async def detokenize(request: Request) -> Response:
    """The text of token ids, or a text for each list of them."""
    asked = await read_json(request, parse_detokenize)
    collected = CollectedAnswers(body_of(request))
    work = _texts(request, asked, collected)
    return await json_reply(request, work, answer.texts, _param_of, collected=collected)


@router.post("/v1/chat/completions/render")
async def render_chat_completion(request: Request) -> Response:
    """The prompt of a chat completion, without an answer."""
    asked = await read_json(request, parse_render)
    body = asked.chat.request

    def document_of(found: chat_pb.RenderChatCompletionResponse, strings: bool) -> dict[str, Any]:
        used = usage(found.started.prompt_usage)
        streams, salt = bool(body.stream), body.cache_salt
        return rendered_prompt(found, used, stream=streams, cache_salt=salt, strings=strings)

    return await _rendered(request, asked, document_of)


async def _rendered(
    request: Request,
    asked: AskedPrompt,
    document_of: Callable[[chat_pb.RenderChatCompletionResponse, bool], dict[str, Any]],
) -> Response:
    state = shared(request)
    spec = await off_loop(
        body_of(request).size,
        translate.to_spec,
        asked.chat,
        max_media_bytes=state.settings.max_media_mib * 2**20,
    )
    spec.model = asked.model
    spec.request_id = name_call(spec.request_id)
    message = chat_pb.RenderChatCompletionRequest(spec=spec, return_token_strings=asked.strings)
    return await json_reply(
        request,
        state.service.render_chat(
            message, metadata=call_metadata(request), spec_bytes=body_of(request).size
        ),
        lambda found: document_of(found, asked.strings),
        translate.FieldPaths(asked.chat).param_of,
    )


async def _texts(
    request: Request, asked: DetokenizeRequest, collected: CollectedAnswers
) -> str | list[str]:
    """The texts, one after the other: each of them is a request of its own to the service."""
    service, texts = shared(request).service, []
    several = any(isinstance(each, list) for each in asked.tokens)
    for token_ids in lists_of(asked):
        message = tokenize_pb.DetokenizeRequest(
            model=asked.model or "",
            token_ids=token_ids,
            skip_special_tokens=bool(asked.skip_special_tokens),
        )
        found = await service.detokenize(message, metadata=call_metadata(request))
        await collected.hold(found)
        texts.append(found.text)
    return texts if several else texts[0]


def _param_of(field: str) -> str:
    return _PARAMS.get(field, field)
