"""Checks every answer of the REST API against the types of the clients: nothing missing, nothing more, no other type.

What is more than the types of `openai` and `anthropic` have is listed here by name, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import json
import re
from typing import Any, Final

from anthropic.types import (
    ErrorResponse,
    Message,
    MessageTokensCount,
    ModelInfo,
    RawMessageStreamEvent,
)
from openai.types import Completion, Decision, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import InputTokenCountResponse
from pydantic import TypeAdapter, ValidationError

from tests.rest_adapter.openai.responses.strict import check_event, check_resource, extras_of


EXTRAS: Final = {
    # vLLM's fields, which its clients read.
    **dict.fromkeys(
        ("stop_reason", "token_ids", "prompt_token_ids", "prompt_logprobs"), "as vLLM has them"
    ),
    "reasoning_content": "as DeepSeek and SGLang have it; OpenAI's chat completions have no reasoning",
    "effective_max_tokens": "the limit in effect, which the context window may have lowered",
    "grounding": "boxes, on request",
    "video_tokens": "as SGLang has it; OpenAI's types know no videos",
    **dict.fromkeys(
        ("text_tokens", "cache_write_tokens"), "newer than the oldest client of the tests"
    ),
    **dict.fromkeys(
        ("label_mass", "top_is_label", "prompt_format"), "diagnostics of decisions, on request"
    ),
    **dict.fromkeys(
        ("root", "max_model_len", "input_modalities", "image_limits", "features"),
        "what a program must know of a model; as vLLM has the first two",
    ),
}
"""Fields that the types of `openai` do not have, with the reason."""

_ERROR_KEYS: Final = {"message", "type", "param", "code"}
_OWN_ERROR_KEYS: Final = {"request_id": "the id of the request in the logs"}


def problems_of(path: str, status: int, content_type: str, body: str) -> list[str]:
    """What is wrong with an answer; empty = nothing, or its path is not one of a client's API.

    Args:
        path: The path of the request, without its query.
        status: The HTTP status.
        content_type: The media type of the answer.
        body: The answer.
    """
    check = next((check for pattern, check in _CHECKS if re.fullmatch(pattern, path)), None)
    if check is None:
        return []
    is_stream = content_type.startswith("text/event-stream")
    documents = [json.loads(data) for data in _frames(body)] if is_stream else [json.loads(body)]
    found = []
    for document in documents:
        try:
            _check(check, path, status, document)
        except (ValidationError, AssertionError, KeyError) as error:
            found.append(f"{path} {status}: {error!r} in {json.dumps(document)[:600]}")
    return found


def _frames(body: str) -> Iterator[str]:
    for line in body.splitlines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield line.removeprefix("data: ")


def _check(check: Callable[[Any], None], path: str, status: int, document: Any) -> None:
    is_anthropic = path.startswith(("/v1/messages", "/v1/models"))
    if is_anthropic and document.get("type") == "error":
        _strictly(ErrorResponse, document)
    elif status >= 400 or (document.keys() == {"error"}):
        _check_error(document)
    else:
        check(document)


def _check_error(document: Mapping[str, Any]) -> None:
    error = document["error"]
    assert error.keys() - _OWN_ERROR_KEYS.keys() == _ERROR_KEYS
    assert isinstance(error["message"], str)
    assert isinstance(error["type"], str)
    for name in ("param", "code"):
        assert error[name] is None or isinstance(error[name], str)


def _strictly(kind: Any, document: Any, extras: Mapping[str, str] = EXTRAS) -> None:
    parsed = TypeAdapter(kind).validate_json(json.dumps(document), strict=True)
    names = {path.rpartition(".")[2] for path in extras_of(parsed)}
    assert names <= extras.keys(), names - extras.keys()


def _chat(document: Any) -> None:
    _strictly(
        ChatCompletionChunk if document["object"] == "chat.completion.chunk" else ChatCompletion,
        document,
    )
    for choice in document[
        "choices"
    ]:  # required by OpenAI's specification, and optional in its types
        assert "logprobs" in choice
        assert "finish_reason" in choice
        assert "delta" in choice or {"role", "content", "refusal"} <= choice["message"].keys()


def _completion(document: Any) -> None:
    # OpenAI's own streams have null until the last chunk, against the types.
    whole = [{**c, "finish_reason": c["finish_reason"] or "stop"} for c in document["choices"]]
    _strictly(Completion, {**document, "choices": whole})


def _models(document: Any) -> None:
    models = document.get("data", [document])
    is_anthropic = "object" not in document
    if is_anthropic and "data" in document:
        assert document.keys() == {"data", "has_more", "first_id", "last_id"}
    for model in models:
        _strictly(ModelInfo if is_anthropic else Model, model, {} if is_anthropic else EXTRAS)


def _response(document: Any) -> None:
    if document.get("object") == "response" and "deleted" not in document:
        check_resource(document)
    elif "sequence_number" in document:
        check_event(document)


def _message(document: Any) -> None:
    if document["type"] == "ping":  # in Anthropic's documentation, and not in its types
        assert document.keys() == {"type"}
        return
    is_whole = document["type"] == "message"
    _strictly(Message if is_whole else RawMessageStreamEvent, document, {})


_CHECKS: Final[list[tuple[str, Callable[[Any], None]]]] = [
    ("/v1/chat/completions", _chat),
    ("/v1/completions", _completion),
    ("/v1/models(/.*)?", _models),
    ("/v1/responses/input_tokens", lambda one: _strictly(InputTokenCountResponse, one)),
    ("/v1/responses(/[^/]+)?", _response),
    ("/v1/decisions", lambda one: _strictly(Decision, one)),
    ("/v1/messages/count_tokens", lambda one: _strictly(MessageTokensCount, one, {})),
    ("/v1/messages", _message),
]
