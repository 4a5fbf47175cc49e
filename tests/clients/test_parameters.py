"""Every parameter of every API, its values, and what becomes of them, with the demo model.

A row is a parameter with a value: it is served, and a check tells whether it had its effect; or it is refused, with the
parameter's name. A value that asks for nothing is served wherever the parameter is known.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
import json
from typing import Any

import pytest
import requests

from tests.e2e.conftest import Served
from tests.support.images import draw
from tests.support.openapi import events_of


PNG = base64.b64encode(draw("red", "circle").png).decode()
URI = f"data:image/png;base64,{PNG}"
ASK = [{"role": "user", "content": "Hello"}]
SHOWN = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": URI}},
            {"type": "text", "text": "What is in the picture?"},
        ],
    }
]
PREDICATE = [{"type": "predicate", "instructions": "It is red."}]
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": ASK, "max_tokens": 8, "temperature": 0}),
    "text": ("/v1/completions", {"prompt": "Hello", "max_tokens": 8, "temperature": 0}),
    "responses": ("/v1/responses", {"input": "Hello", "max_output_tokens": 8, "temperature": 0}),
    "messages": ("/v1/messages", {"messages": ASK, "max_tokens": 8, "temperature": 0}),
    "decisions": ("/v1/decisions", {"input": "A red circle", "questions": PREDICATE}),
}
GENERATING = ("chat", "text", "responses")
NOTHING: tuple[object, ...] = (None, False, "", [], {})

Check = Callable[[Any], bool]


def ask(product: Served, api: str, fields: dict[str, Any]) -> requests.Response:
    path, base = BASES[api]
    body = {"model": "qwen-vl"} | base | fields
    return requests.post(product.http + path, json=body, timeout=120)


def text_of(document: Any) -> str:
    message = document["choices"][0]
    return str(message["text"] if "text" in message else message["message"]["content"])


def completion_tokens(count: int) -> Check:
    return lambda document: bool(document["usage"]["completion_tokens"] == count)


def finished(reason: str) -> Check:
    return lambda document: bool(document["choices"][0]["finish_reason"] == reason)


def anything(document: Any) -> bool:
    return bool(document)


SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "boolean"}},
    "required": ["a"],
    "additionalProperties": False,
}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}


def has_a(document: Any) -> bool:
    return list(json.loads(text_of(document))) == ["a"]


# ---- values that both kinds of completions serve ----
SERVED_BY_BOTH: list[tuple[dict[str, Any], Check]] = [
    ({"temperature": 2}, anything),
    ({"top_p": 1}, anything),
    ({"top_p": 0.5, "temperature": 1}, anything),
    ({"top_k": 0}, anything),
    ({"top_k": -1}, anything),
    ({"top_k": 1, "temperature": 1}, anything),
    ({"min_p": 0.5}, anything),
    ({"repetition_penalty": 1.3}, anything),
    ({"repeat_penalty": 1.3}, anything),
    ({"presence_penalty": -2, "frequency_penalty": 2}, anything),
    ({"seed": 2**64 - 1}, anything),
    ({"seed": -5, "temperature": 1}, anything),
    ({"max_tokens": 1}, completion_tokens(1)),
    ({"max_tokens": 2.0}, completion_tokens(2)),
    ({"min_tokens": 20, "max_tokens": 20}, completion_tokens(20)),
    ({"ignore_eos": True, "max_tokens": 30}, completion_tokens(30)),
    ({"n": 2}, lambda d: [c["index"] for c in d["choices"]] == [0, 1]),
    ({"n": 4, "temperature": 1}, lambda d: len(d["choices"]) == 4),
    ({"stop": list("zyxwvu")}, anything),
    ({"stop": "\u0001"}, anything),
    ({"stop": ["", "z"]}, anything),
    ({"stop_token_ids": [0, 1, 2]}, anything),
    ({"include_stop_str_in_output": True, "stop": ["z"]}, anything),
    ({"logit_bias": {"5": -100}}, anything),
    ({"logit_bias": '{"5": -100}'}, anything),
    (
        {"allowed_token_ids": [5, 7], "return_token_ids": True},
        lambda d: {*d["choices"][0]["token_ids"]} <= {5, 7} and completion_tokens(8)(d),
    ),
    ({"bad_words": ["red", "zyxwv", "<think>"]}, anything),
    ({"return_token_ids": True}, lambda d: len(d["choices"][0]["token_ids"]) >= 1),
    ({"skip_special_tokens": False}, anything),
    ({"grounding": True}, lambda d: d["choices"][0]["grounding"] == []),
    ({"cache_salt": "mine"}, anything),
    ({"request_id": "one-of-the-table"}, lambda d: d["id"].endswith("one-of-the-table")),
    ({"min_pixels": 4096, "max_pixels": 65536}, anything),
    ({"mm_processor_kwargs": {"max_pixels": 65536, "oversized_image": "downsize"}}, anything),
    ({"response_format": JSON_SCHEMA, "max_tokens": 40}, has_a),
    ({"guided_json": SCHEMA, "max_tokens": 40}, has_a),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, lambda d: text_of(d) in ("yes", "no")),
    ({"guided_choice": ["yes", "no"]}, lambda d: text_of(d) in ("yes", "no")),
    ({"guided_regex": "[ab]{3}"}, lambda d: set(text_of(d)) <= set("ab")),
    ({"regex": "[ab]{3}"}, lambda d: len(text_of(d)) == 3),
    ({"structured_outputs": {"grammar": 'start: "x" | "y"'}}, lambda d: text_of(d) in ("x", "y")),
    ({"stream_options": {"include_usage": True}}, anything),
    ({"user": "u", "metadata": {"a": "b"}, "service_tier": "auto", "verbosity": "low"}, anything),
    ({"prompt_cache_key": "k", "safety_identifier": "s", "store": True}, anything),
    ({"best_of": 1, "length_penalty": 1, "priority": -1}, anything),
    ({"tool_choice": "none", "parallel_tool_calls": False}, anything),
    ({"num_ctx": 4096, "keep_alive": "5m", "a_field_of_tomorrow": 1}, anything),
]
# ---- values that only one of them serves ----
SERVED_BY_CHAT: list[tuple[dict[str, Any], Check]] = [
    ({"max_completion_tokens": 1}, completion_tokens(1)),
    ({"logprobs": True}, lambda d: d["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []),
    (
        {"logprobs": True, "top_logprobs": 20},
        lambda d: len(d["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 20,
    ),
    ({"logprobs": 0, "top_logprobs": 0}, lambda d: d["choices"][0]["logprobs"] is None),
    ({"prompt_logprobs": 0}, lambda d: d["prompt_logprobs"][0] is None),
    ({"add_generation_prompt": False}, anything),
    (
        {"continue_final_message": True, "messages": [*ASK, {"role": "assistant", "content": "A"}]},
        anything,
    ),
    ({"chat_template_kwargs": {"enable_thinking": False}}, anything),
    ({"enable_thinking": False, "thinking": {"type": "disabled"}}, anything),
    ({"reasoning_effort": "none"}, anything),
    ({"reasoning_effort": "high", "reasoning": {"effort": "xhigh"}}, anything),
    ({"modalities": ["text"], "prediction": {"type": "content", "content": "x"}}, anything),
    ({"response_format": {"type": "text"}}, anything),
    ({"response_format": {"type": "json_object"}, "max_tokens": 60, "stop": ["}"]}, anything),
    ({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"}, anything),
    ({"tool_choice": {"type": "auto"}}, anything),
    ({"function_call": "auto", "functions": []}, anything),
    ({"messages": SHOWN}, lambda d: d["usage"]["prompt_tokens_details"]["image_tokens"] > 0),
]
SERVED_BY_TEXT: list[tuple[dict[str, Any], Check]] = [
    ({"echo": True}, lambda d: text_of(d).startswith("Hello")),
    ({"echo": True, "max_tokens": 0, "logprobs": 1}, completion_tokens(0)),
    ({"logprobs": 5}, lambda d: len(d["choices"][0]["logprobs"]["top_logprobs"][0]) >= 5),
    ({"logprobs": 0}, lambda d: d["choices"][0]["logprobs"]["tokens"] != []),
    ({"prompt": ["Hello", "Bye"]}, lambda d: [c["index"] for c in d["choices"]] == [0, 1]),
    ({"prompt": [5, 6, 7]}, lambda d: d["usage"]["prompt_tokens"] == 3),
    ({"prompt_logprobs": 0}, lambda d: d["choices"][0]["prompt_logprobs"][0] is None),
]
# ---- values that are refused, with the parameter that the error names ----
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "0.5"}, "temperature"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"repeat_penalty": 0}, "repeat_penalty"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"seed": 2**64}, "seed"),
    ({"n": 5}, "n"),
    ({"n": 0}, "n"),
    ({"stop": ["x"] * 65}, "stop"),
    ({"stop": 5}, "stop"),
    ({"stop_token_ids": [2**30]}, "stop_token_ids"),
    ({"logit_bias": {"5": 101}}, "logit_bias"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {str(2**29): 1}}, "logit_bias"),
    ({"logit_bias": '{"5": '}, "logit_bias"),
    ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"cache_salt": "x" * 129}, "cache_salt"),
    ({"request_id": "\u00e9"}, "request_id"),
    ({"mm_processor_kwargs": {"fps": 2}}, "mm_processor_kwargs.fps"),
    ({"mm_processor_kwargs": {"oversized_image": "crop"}}, "mm_processor_kwargs.oversized_image"),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
    ({"response_format": JSON_SCHEMA, "guided_regex": "a"}, "guided_regex"),
    ({"guided_regex": "(?=a)"}, "guided_regex"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"bad_words": [""]}, "bad_words"),
    ({"bad_words": "x"}, "bad_words"),
    ({"bad_words": ["x"] * 257}, "bad_words"),
    ({"allowed_token_ids": [2**30]}, "allowed_token_ids"),
    ({"allowed_token_ids": [-1]}, "allowed_token_ids"),
    ({"best_of": 2}, "best_of"),
    ({"length_penalty": 2}, "length_penalty"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"priority": 1.5}, "priority"),
    ({"truncate_prompt_tokens": 10}, "truncate_prompt_tokens"),
    ({"logits_processors": ["x"]}, "logits_processors"),
    ({"ebnf": "root ::= x"}, "ebnf"),
    ({"max_output_tokens": 5}, "max_output_tokens"),
    ({"max_new_tokens": 5}, "max_new_tokens"),
]
WRONG_IN_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": -1}, "max_completion_tokens"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"web_search_options": {"a": 1}}, "web_search_options"),
    ({"web_search": True}, "web_search"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"chat_template": "{{ x }}"}, "chat_template"),
    ({"chat_template_kwargs": {"add_vision_id": True}}, "chat_template_kwargs.add_vision_id"),
    ({"enable_thinking": True}, "enable_thinking"),
    ({"reasoning_effort": "huge"}, "reasoning_effort"),
    ({"documents": [{"text": "x"}]}, "documents"),
    ({"echo": True}, "echo"),
    ({"suffix": "x"}, "suffix"),
    ({"prompt": "x"}, "prompt"),
    ({"input": "x"}, "input"),
    ({"system": "x"}, "system"),
    ({"continue_final_message": True}, "continue_final_message"),
]
WRONG_IN_TEXT: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": 5}, "max_completion_tokens"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"suffix": "x"}, "suffix"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"messages": ASK}, "messages"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
]
WRONG_IN_RESPONSES: list[tuple[dict[str, Any], str]] = [
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_tokens": 5}, "max_tokens"),
    ({"max_completion_tokens": 5}, "max_completion_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"n": 2}, "n"),
    ({"background": True}, "background"),
    ({"truncation": "auto"}, "truncation"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"include": ["secrets"]}, "include[0]"),
    ({"image": {"context_compression": "always"}}, "image.context_compression"),
    ({"stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"logprobs": True}, "logprobs"),
]
WRONG_IN_MESSAGES: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"thinking": {"type": "enabled", "budget_tokens": 10}}, "thinking.budget_tokens"),
    ({"tools": [{"type": "web_search_20250305", "name": "x"}]}, "tools.0.type"),
    ({"tool_choice": {"type": "any"}}, "tool_choice.type"),
    ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
    ({"container": "c"}, "container"),
    ({"n": 2}, "n"),
    ({"stop": ["x"]}, "stop"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
]
WRONG_IN_DECISIONS: list[tuple[dict[str, Any], str]] = [
    ({"questions": []}, "questions"),
    ({"stream": True}, "stream"),
    ({"temperature": 0.5}, "temperature"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"n": 2}, "n"),
    ({"messages": ASK}, "messages"),
    ({"safety_identifier": "x" * 129}, "safety_identifier"),
    ({"rotations": 0}, "rotations"),
]
SERVED_BY_RESPONSES: list[tuple[dict[str, Any], Check]] = [
    ({"top_p": 0, "temperature": 1}, lambda d: d["top_p"] == 0),
    ({"max_output_tokens": 1}, lambda d: d["status"] == "incomplete"),
    ({"truncation": "disabled", "background": False, "store": False}, anything),
    ({"presence_penalty": 1, "frequency_penalty": 1}, lambda d: d["presence_penalty"] == 1),
    ({"top_logprobs": 2}, lambda d: d["output"][0]["content"][0]["logprobs"] != []),
    ({"reasoning": {"effort": "none", "summary": "auto"}}, anything),
    ({"text": {"verbosity": "medium", "format": {"type": "text"}}}, anything),
    ({"metadata": {"a": "b"}}, lambda d: d["metadata"] == {"a": "b"}),
    ({"allowed_token_ids": [5]}, lambda d: len({*written(d)}) == 1),
    ({"seed": 3, "stop": ["z"] * 6, "top_k": 5, "logit_bias": {"5": -1}}, anything),
]
SERVED_BY_MESSAGES: list[tuple[dict[str, Any], Check]] = [
    ({"top_p": 0, "temperature": 1}, anything),
    ({"top_k": 1}, anything),
    ({"max_tokens": 1}, lambda d: d["stop_reason"] == "max_tokens"),
    ({"stop_sequences": ["z"] * 6}, anything),
    ({"system": "Be kind.", "metadata": {"user_id": "u"}}, anything),
    ({"thinking": {"type": "disabled"}, "output_config": {"effort": "low"}}, anything),
    ({"mcp_servers": [], "container": None, "n": 1}, anything),
]
SERVED_BY_DECISIONS: list[tuple[dict[str, Any], Check]] = [
    ({"prompt_cache_key": "k", "temperature": 1, "n": 1}, anything),
    ({"diagnostics": True}, lambda d: 0 <= d["answers"][0]["label_mass"] <= 1),
    ({"rotations": 1}, anything),
]


def rows(*tables: tuple[str, list[tuple[dict[str, Any], Any]]]) -> list[Any]:
    return [
        pytest.param(api, fields, expected, id=f"{api}: {json.dumps(fields)[:60]}")
        for api, table in tables
        for fields, expected in table
    ]


@pytest.mark.parametrize(
    ("api", "fields", "check"),
    rows(
        ("chat", SERVED_BY_BOTH),
        ("text", SERVED_BY_BOTH[::3]),
        ("chat", SERVED_BY_CHAT),
        ("text", SERVED_BY_TEXT),
        ("responses", SERVED_BY_RESPONSES),
        ("messages", SERVED_BY_MESSAGES),
        ("decisions", SERVED_BY_DECISIONS),
    ),
)
def test_served(product: Served, api: str, fields: dict[str, Any], check: Check) -> None:
    response = ask(product, api, fields)
    assert response.status_code == 200, response.text
    assert check(response.json()), response.text


@pytest.mark.parametrize(
    ("api", "fields", "param"),
    rows(
        ("chat", WRONG),
        ("chat", WRONG_IN_CHAT),
        ("text", WRONG_IN_TEXT),
        ("responses", WRONG_IN_RESPONSES),
        ("decisions", WRONG_IN_DECISIONS),
    ),
)
def test_refused(product: Served, api: str, fields: dict[str, Any], param: str) -> None:
    response = ask(product, api, fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


@pytest.mark.full
@pytest.mark.parametrize(("api", "fields", "param"), rows(("text", WRONG)))
def test_refused_by_text_completions_too(
    product: Served, api: str, fields: dict[str, Any], param: str
) -> None:
    test_refused(product, api, fields, param)


@pytest.mark.parametrize(("fields", "param"), WRONG_IN_MESSAGES)
def test_refused_by_messages(product: Served, fields: dict[str, Any], param: str) -> None:
    response = ask(product, "messages", fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert param in error["message"]


REFUSED_NAMES = sorted({next(iter(fields)) for fields, _ in (*WRONG, *WRONG_IN_CHAT)})


@pytest.mark.parametrize("value", NOTHING, ids=json.dumps)
def test_a_value_that_asks_for_nothing_is_no_request(product: Served, value: object) -> None:
    """All of them at once, as clients with forms send them; lists of messages and the model are required."""
    fields = {name: value for name in REFUSED_NAMES if name not in ("stream", "max_tokens")}
    response = ask(product, "chat", fields)
    assert response.status_code == 200, response.text


def test_top_p_0_is_greedy(product: Served) -> None:
    """At the highest temperature, with several seeds."""
    asked = {"messages": SHOWN, "max_tokens": 12}
    greedy = text_of(ask(product, "chat", asked | {"temperature": 0}).json())
    for seed in (1, 2, 3):
        drawn = ask(product, "chat", asked | {"temperature": 2, "top_p": 0, "seed": seed})
        assert text_of(drawn.json()) == greedy


@pytest.mark.parametrize("as_text", [False, True])
def test_logit_bias_changes_the_answer(product: Served, as_text: bool) -> None:
    plain = ask(product, "chat", {"return_token_ids": True, "ignore_eos": True}).json()
    first = plain["choices"][0]["token_ids"][0]
    bias: Any = {str(first): -100}
    if as_text:
        bias = json.dumps(bias)
    biased = ask(product, "chat", {"return_token_ids": True, "logit_bias": bias}).json()
    assert first not in biased["choices"][0]["token_ids"]


@pytest.mark.both_backends("product")
@pytest.mark.parametrize("api", GENERATING)
def test_words_and_tokens_that_an_answer_must_not_have(product: Served, api: str) -> None:
    """Its first word, and the whole of it; then all tokens but one."""
    said = written(ask(product, api, {}).json())
    for bad in (said.split()[0], said):
        changed = written(ask(product, api, {"bad_words": [bad]}).json())
        assert changed
        assert bad not in changed
    assert len({*written(ask(product, api, {"allowed_token_ids": [5]}).json())}) == 1


def written(document: Any) -> str:
    """The text of an answer of any API."""
    if "output" in document:
        return str(document["output"][0]["content"][0]["text"])
    return text_of(document)


def test_the_limit_of_completion_tokens_wins(product: Served) -> None:
    asked = {"max_tokens": 9, "max_completion_tokens": 3, "ignore_eos": True}
    assert completion_tokens(3)(ask(product, "chat", asked).json())


def test_the_level_of_detail(product: Served) -> None:
    """Low is the smallest; original is no smaller than high; the level may be in any case."""
    tokens = {}
    image = base64.b64encode(draw("red", "circle", size=(512, 512)).png).decode()
    for detail in ("low", "auto", "high", "original", "LOW"):
        url = {"url": f"data:image/png;base64,{image}", "detail": detail}
        content = [{"type": "image_url", "image_url": url}, {"type": "text", "text": "?"}]
        usage = ask(product, "chat", {"messages": [{"role": "user", "content": content}]}).json()
        tokens[detail] = usage["usage"]["prompt_tokens_details"]["image_tokens"]
    assert tokens["low"] == tokens["LOW"] < tokens["high"] == tokens["original"]
    assert tokens["low"] <= tokens["auto"] <= tokens["high"]


@pytest.mark.parametrize("api", ["chat", "text"])
def test_usage_in_every_chunk(product: Served, api: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    asked = {"stream": True, "stream_options": options, "ignore_eos": True, "n": 2}
    chunks = events_of(ask(product, api, asked).text)
    *running, last = [chunk["usage"] for chunk in chunks]
    counts = [usage["completion_tokens"] for usage in running]
    assert counts == sorted(counts)
    assert len(set(counts)) > 2, "it grows"
    assert counts[-1] == last["completion_tokens"] == 16
    assert {usage["prompt_tokens"] for usage in running} == {last["prompt_tokens"]}
    assert all("token_ids" not in c for chunk in chunks for c in chunk["choices"])
    assert chunks[-1]["choices"] == []


def test_usage_tells_details_in_every_api(product: Served) -> None:
    image = [{"type": "input_image", "image_url": URI}, {"type": "input_text", "text": "red?"}]
    source = {"type": "base64", "media_type": "image/png", "data": PNG}
    claude = [{"type": "image", "source": source}, {"type": "text", "text": "red?"}]
    chat = ask(product, "chat", {"messages": SHOWN}).json()["usage"]
    details = chat["prompt_tokens_details"]
    assert set(details) == {
        "audio_tokens",
        "cache_write_tokens",
        "cached_tokens",
        "image_tokens",
        "text_tokens",
    }
    assert details["image_tokens"] + details["text_tokens"] == chat["prompt_tokens"]
    answer = chat["completion_tokens_details"]
    assert answer["text_tokens"] + answer["reasoning_tokens"] == chat["completion_tokens"]
    shown = [{"role": "user", "content": image}]
    for api in ("responses", "decisions"):
        usage = ask(product, api, {"input": shown}).json()["usage"]
        assert set(usage["input_tokens_details"]) == {"cached_tokens", "cache_write_tokens"}
        assert set(usage["output_tokens_details"]) == {"reasoning_tokens"}
        assert usage["input_tokens"] + usage["output_tokens"] == usage["total_tokens"]
    first, second = (
        ask(product, "messages", {"messages": [{"role": "user", "content": claude}]}).json()[
            "usage"
        ]
        for _ in range(2)
    )
    assert first["cache_creation_input_tokens"] == 0
    assert first["output_tokens_details"] == {"thinking_tokens": 0}
    whole = [usage["input_tokens"] + usage["cache_read_input_tokens"] for usage in (first, second)]
    assert whole[0] == whole[1]


def test_what_is_new_in_the_cache_is_told_once(product: Served) -> None:
    """The prompts are of this test alone; a page has 16 tokens, and only full ones are kept."""
    words = "One, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve."

    def used(api: str, name: str, **fields: Any) -> tuple[int, int, int]:
        question = f"{name} of {api}: {words}"
        asked = {"input": question} if api in ("responses", "decisions") else {}
        said = (
            {"prompt": question}
            if api == "text"
            else {"messages": [{"role": "user", "content": question}]}
        )
        usage = ask(product, api, (asked or said) | fields).json()["usage"]
        if api == "messages":
            found, new = usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]
            return found, new, usage["input_tokens"] + found + new
        details = usage.get("prompt_tokens_details") or usage["input_tokens_details"]
        total = usage.get("prompt_tokens") or usage["input_tokens"]
        return details["cached_tokens"], details["cache_write_tokens"], total

    mark = {"cache_control": {"type": "ephemeral"}}
    for api in ("chat", "text", "responses", "decisions", "messages"):
        fields = mark if api == "messages" else {}
        found, new, total = used(api, "a", **fields)
        assert total - 16 < found + new <= total or api == "decisions", api
        assert new > 0, api
        assert used(api, "a", **fields)[1] == 0, api
    assert used("messages", "b")[1] == 0


LONG = "word " * 9000


@pytest.mark.parametrize(
    ("api", "fields", "param"),
    [
        ("chat", {"messages": [{"role": "user", "content": LONG}]}, "messages"),
        ("text", {"prompt": LONG}, "prompt"),
        ("responses", {"input": LONG}, "input"),
        ("decisions", {"input": LONG}, "input"),
    ],
)
def test_an_overflow_of_the_context_is_refused(
    product: Served, api: str, fields: dict[str, Any], param: str
) -> None:
    response = ask(product, api, fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert error["param"].startswith(param)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_limit_beyond_the_context(product: Served, strict_product: Served, field: str) -> None:
    """Lowered to what is left, or refused with --strict-max-tokens."""
    asked = {field: 10**6, "stop": ["o", "e", "a", "i", " "]}
    answer = ask(product, "chat", asked).json()
    assert answer["effective_max_tokens"] + answer["usage"]["prompt_tokens"] == 4096
    error = ask(strict_product, "chat", asked).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", field)
