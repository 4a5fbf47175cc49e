"""Fields of this service's other paths are refused here by name, unless their values ask for nothing."""

from __future__ import annotations

from typing import Any

import pytest

from rest_adapter.anthropic.messages import schema
from rest_adapter.errors import ApiError
from rest_adapter.openai.chat.schema import ChatRequest


MESSAGES: dict[str, Any] = {
    "model": "m",
    "max_tokens": 5,
    "messages": [{"role": "user", "content": "x"}],
}
# What has no effect on the answer, or is also in the other APIs only for their own objects.
WITHOUT_EFFECT = {"stream_options", "parallel_tool_calls", "add_generation_prompt"}
OF_CONVERSATIONS = {"continue_final_message", "reasoning"}
OTHERS = sorted(
    {*ChatRequest.model_fields}
    - {*schema.CreateMessageRequest.model_fields}
    - WITHOUT_EFFECT
    - OF_CONVERSATIONS
)


@pytest.mark.parametrize("name", OTHERS)
def test_a_field_of_another_path_is_refused(name: str) -> None:
    with pytest.raises(ApiError) as caught:
        schema.parse_messages(MESSAGES | {name: "x"})
    assert (caught.value.reason, caught.value.param) == ("UNSUPPORTED_PARAMETER", name)


NEUTRAL: dict[str, list[object]] = {
    "response_format": ["text", {"type": "text"}, {"type": "text", "json_schema": None}],
    "stop": ["", [], [""]],
    "priority": [0],
    "n": [1, 1.0],
    "repetition_penalty": [1, 1.0],
    "presence_penalty": [0, 0.0],
    "frequency_penalty": [0],
    "min_p": [0],
    "min_tokens": [0],
    "skip_special_tokens": [True],
    "top_logprobs": [0],
    "logit_bias": [{}, []],
    "structured_outputs": [{}, {"json": None}],
    "chat_template_kwargs": [{}, {"enable_thinking": None}],
}


SWITCHED_OFF_BY_FALSE = {"enable_thinking", "skip_special_tokens"}


@pytest.mark.parametrize("name", OTHERS)
def test_neutral_values_of_other_paths_are_accepted(name: str) -> None:
    unless_a_choice: list[object] = [] if name in SWITCHED_OFF_BY_FALSE else [False]
    for value in (None, *unless_a_choice, *NEUTRAL.get(name, [])):
        _, unknown = schema.parse_messages(MESSAGES | {name: value})
        assert name not in unknown


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("enable_thinking", False, "send it as 'thinking'"),
        ("chat_template_kwargs", {"enable_thinking": False}, "send it as 'thinking'"),
        ("chat_template_kwargs", {"enable_thinking": True}, "send it as 'thinking'"),
        ("chat_template_kwargs", {"add_vision_id": False}, "chat_template_kwargs"),
        ("skip_special_tokens", False, "skip_special_tokens"),
    ],
)
def test_a_choice_is_not_lost(name: str, value: object, words: str) -> None:
    with pytest.raises(ApiError, match=words) as caught:
        schema.parse_messages(MESSAGES | {name: value})
    assert caught.value.param == name


@pytest.mark.parametrize("value", [-1, -2.0])
def test_a_maximum_is_no_negative_number(value: float) -> None:
    with pytest.raises(ApiError, match="must be 0 or more") as caught:
        schema.parse_messages(MESSAGES | {"max_tokens": value})
    assert caught.value.param == "max_tokens"
    schema.parse_count(MESSAGES | {"max_tokens": value})
