"""Bodies of other APIs: the error names the API, not only the field that is missing."""

from __future__ import annotations

from typing import Any

import pytest

from rest_adapter.errors import ApiError
from rest_adapter.openai.chat.schema import parse_chat
from rest_adapter.openai.completions.schema import parse_completion
from rest_adapter.openai.responses.schema import parse_responses


MESSAGES = [{"role": "user", "content": [{"image": "https://h/x.png"}, {"text": "What is it?"}]}]
BODIES: dict[str, tuple[dict[str, Any], str, str]] = {
    "DashScope": (
        {"input": {"messages": MESSAGES}, "parameters": {"result_format": "message"}},
        "DashScope's own API",
        "send 'input.messages' as 'messages'",
    ),
    "DashScope, text": ({"input": {"prompt": "Hi"}}, "DashScope's own API", "'parameters'"),
    "Responses, text": (
        {"input": "Hi", "instructions": "x"},
        "OpenAI Responses API",
        "/v1/responses",
    ),
    "Responses": ({"input": [{"role": "user", "content": "Hi"}]}, "OpenAI Responses API", "send"),
    "Gemini": ({"contents": [{"parts": [{"text": "Hi"}]}]}, "Gemini API", "'generationConfig'"),
    "TGI": ({"inputs": "Hi", "parameters": {}}, "text-generation-inference", "'parameters'"),
    "Vertex": ({"instances": [{"prompt": "Hi"}]}, "Vertex AI", "one instance"),
    "Cohere": ({"message": "Hi", "chat_history": []}, "Cohere API", "'messages'"),
    "Batch": (
        {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m"}},
        "OpenAI Batch API",
        "'body' contains",
    ),
    "completion": ({"prompt": "Hi"}, "/v1/completions", "a conversation has 'messages'"),
}


def refused(parse: Any, body: dict[str, Any]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(body)
    assert (caught.value.status, caught.value.reason) == (400, "MISSING_FIELD")
    return caught.value


@pytest.mark.parametrize("with_model", [True, False])
@pytest.mark.parametrize("case", BODIES)
def test_a_conversation_of_another_api(case: str, with_model: bool) -> None:
    body, api, advice = BODIES[case]
    error = refused(parse_chat, body | ({"model": "demo"} if with_model else {}))
    assert error.param == "messages"
    assert error.message.startswith("'messages' is missing: ")
    assert api in error.message
    assert advice in error.message


@pytest.mark.parametrize("case", [case for case in BODIES if case != "completion"])
def test_a_text_completion_of_another_api(case: str) -> None:
    error = refused(parse_completion, BODIES[case][0])
    assert error.param == "prompt"
    assert "send 'prompt'" in error.message


def test_a_conversation_for_text_completions() -> None:
    error = refused(parse_completion, {"model": "demo", "messages": MESSAGES})
    assert "/v1/chat/completions" in error.message


@pytest.mark.parametrize("extra", [{}, {"input": None}, {"inputs": None}, {"prompt": None}])
def test_a_field_that_is_simply_missing(extra: dict[str, Any]) -> None:
    assert refused(parse_chat, {"model": "demo"} | extra).message == "'messages' is missing."
    assert refused(parse_chat, {"messages": MESSAGES} | extra).message == "'model' is missing."


def test_a_response_without_a_model() -> None:
    for body in ({"input": "Hi"}, {"input": {"messages": MESSAGES}}, {}):
        assert refused(parse_responses, body).message == "'model' is missing."
