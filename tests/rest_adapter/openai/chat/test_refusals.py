"""Every failure has the right status and OpenAI's error body, with `param` as the caller wrote the field."""

from __future__ import annotations

import base64
import json
from typing import Any

import openai
import pytest
import requests

from qwenvl.errors import BY_REASON
from tests.rest_adapter.conftest import Adapter, open_adapter


USER = {"role": "user", "content": "x"}
URL = "messages[0].content[0].image_url.url"


def error_of(response: requests.Response, status: int) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "request_id"}
    assert error["message"]
    assert error["code"] is None or isinstance(error["code"], str)
    return error


def with_part(**part: Any) -> dict:
    return {"messages": [{"role": "user", "content": [part]}]}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no messages": ({"messages": []}, "messages"),
    "null messages": ({"messages": None}, "messages"),
    "text for messages": ({"messages": "x"}, "messages"),
    "text for a message": ({"messages": ["x"]}, "messages[0]"),
    "unknown role": ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
    "no role": ({"messages": [{"content": "x"}]}, "messages[0].role"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content"),
    "empty content": ({"messages": [USER, {"role": "user", "content": []}]}, "messages[1].content"),
    "number as content": ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    "temperature": ({"temperature": "hot"}, "temperature"),
    "text for a number": ({"top_p": "0.5"}, "top_p"),
    "boolean for a number": ({"max_tokens": True}, "max_tokens"),
    "beyond int32": ({"top_k": 2**31}, "top_k"),
    "beyond 64 bits": ({"seed": 1.8446744073709552e19}, "seed"),
    "stop": ({"stop": ["a", 1]}, "stop[1]"),
    "stop_token_ids": ({"stop_token_ids": ["a"]}, "stop_token_ids[0]"),
    "logit_bias key": ({"logit_bias": {"x": 1}}, "logit_bias"),
    "top_logprobs alone": ({"top_logprobs": 2}, "top_logprobs"),
    "template switch": ({"chat_template_kwargs": {"tools": 1}}, "chat_template_kwargs.tools"),
    "processor switch": ({"mm_processor_kwargs": {"fps": 1}}, "mm_processor_kwargs.fps"),
    "part type": (with_part(type="hologram"), "messages[0].content[0].type"),
    "part without type": (with_part(note="x"), "messages[0].content[0].type"),
    "image without url": (with_part(type="image_url", image_url={}), URL),
    "empty url": (with_part(type="image_url", image_url={"url": ""}), URL),
    "broken base64": (
        with_part(type="image_url", image_url={"url": "data:image/png;base64,@"}),
        URL,
    ),
    "plain broken url": (
        with_part(type="input_image", image_url="data:,"),
        "messages[0].content[0].image_url",
    ),
    "broken Qwen style": (
        with_part(type="image", image="data:;base64,!"),
        "messages[0].content[0].image",
    ),
    "detail": (
        with_part(type="image_url", image_url={"url": "http://x/", "detail": "ultra"}),
        "messages[0].content[0].image_url.detail",
    ),
}

UNSUPPORTED: dict[str, dict[str, Any]] = {
    "tools[0].type": {"tools": [{"type": "web_search"}]},
    "tool_choice.type": {"tool_choice": {"type": "custom", "name": "f"}},
    "response_format": {"response_format": {"type": "text", "json_schema": {"a": 1}}},
    "modalities": {"modalities": ["text", "audio"]},
    "audio": {"audio": {"voice": "a"}},
    "web_search_options": {"web_search_options": {"a": 1}},
    "functions": {"functions": [{}]},
    "structured_outputs.structural_tag": {"structured_outputs": {"structural_tag": "{}"}},
    "ebnf": {"ebnf": "root ::= x"},
    "max_output_tokens": {"max_output_tokens": 5},
    "messages[0].tool_calls[0].type": {
        "messages": [{"role": "assistant", "tool_calls": [{"type": "custom"}]}]
    },
    "messages[0].content[0]": with_part(type="input_audio", input_audio={}),
}

BROKEN = {
    "empty": b"",
    "half": b"{",
    "list": b"[]",
    "deep": b'{"model":"demo","messages":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "invalid UTF-8": b'{"model":"demo","messages":[{"role":"user","content":"\xff\xfe"}]}',
    "lone surrogate": b'{"model":"demo","messages":[{"role":"user","content":"\\ud800"}]}',
    "NaN": b'{"model":"demo","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_field(adapter: Adapter, case: str) -> None:
    fields, param = REFUSED[case]
    error = error_of(adapter.ask(**fields), 400)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert not adapter.seen.calls


@pytest.mark.parametrize("param", UNSUPPORTED)
def test_known_and_unsupported_field(adapter: Adapter, param: str) -> None:
    error = error_of(adapter.ask(**UNSUPPORTED[param]), 400)
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")


@pytest.mark.parametrize("case", BROKEN)
def test_broken_body(adapter: Adapter, case: str) -> None:
    assert error_of(adapter.post(BROKEN[case]), 400)["param"] is None


def test_harmless_and_neutral_fields_are_accepted(adapter: Adapter) -> None:
    fields: dict[str, Any] = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "parallel_tool_calls": True,
        "tools": [],
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "functions": None,
        "audio": None,
        "an_unknown_field": {"x": 1},
    }
    assert adapter.ask(**fields).status_code == 200


def test_unknown_fields_are_refused_in_strict_mode() -> None:
    with open_adapter(strict_fields=True) as adapter:
        assert adapter.ask(user="u").status_code == 200
        error = error_of(adapter.ask(surprise=1), 400)
        assert error["param"] == "surprise"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("reason", BY_REASON)
def test_every_row_of_the_error_table(adapter: Adapter, reason: str, stream: bool) -> None:
    row = BY_REASON[reason]
    response = adapter.ask(f"fail {reason}", stream=stream)
    error = error_of(response, row.http_status)
    assert (error["type"], error["code"]) == (row.openai_type, row.openai_code)
    assert response.headers.get("retry-after") == ("3" if row.retry else None)
    useless = not row.retry and (row.http_status == 409 or row.http_status >= 500)
    assert response.headers.get("x-should-retry") == ("false" if useless else None)
    if reason != "INTERNAL":
        assert error["param"] == "temperature"
        hint = " (context_length_exceeded)" if reason == "CONTEXT_LENGTH_EXCEEDED" else ""
        assert error["message"] == f"It is {reason}.{hint}"
    else:
        assert reason not in error["message"]


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("INVALID_IMAGE", openai.BadRequestError),
        ("UNAUTHENTICATED", openai.AuthenticationError),
        ("PERMISSION_DENIED", openai.PermissionDeniedError),
        ("MODEL_NOT_FOUND", openai.NotFoundError),
        ("REQUEST_ID_IN_USE", openai.ConflictError),
        ("QUEUE_FULL", openai.RateLimitError),
        ("ENGINE_UNAVAILABLE", openai.InternalServerError),
    ],
)
def test_openai_raises_its_own_class(
    client: openai.OpenAI, reason: str, kind: type[openai.APIStatusError]
) -> None:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": f"fail {reason}"}]
        )
    assert caught.value.code == BY_REASON[reason].openai_code


def test_unknown_model(adapter: Adapter) -> None:
    assert error_of(adapter.ask(model="gpt-17"), 404)["code"] == "model_not_found"
    # Over gRPC an empty name is the canonical model.
    for response in (adapter.ask(model=""), adapter.complete("x", model="")):
        error = error_of(response, 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")


@pytest.mark.parametrize("stream", [True, False])
def test_unreachable_service_is_asked_once_more(adapter: Adapter, stream: bool) -> None:
    assert adapter.ask("unreachable 1", stream=stream).status_code == 200
    assert adapter.seen.calls == 2


def test_unreachable_service_is_told_without_its_address(adapter: Adapter) -> None:
    response = adapter.ask("unreachable 9")
    assert error_of(response, 503)["code"] == "overloaded"
    assert "10.0.0.1" not in response.text
    assert adapter.seen.calls == 2


def test_no_service_at_all() -> None:
    with open_adapter(grpc_target="127.0.0.1:1") as adapter:
        error_of(adapter.ask(), 503)
        error_of(requests.get(f"{adapter.url}/ready", timeout=10), 503)
        assert requests.get(f"{adapter.url}/health", timeout=10).status_code == 200


def test_deadline() -> None:
    with open_adapter(request_timeout_s=0.3) as adapter:
        response = adapter.ask("hang")
        assert error_of(response, 504)["code"] == "timeout"
        assert response.headers["x-should-retry"] == "false"


def test_aborted_answer_has_no_finish_reason(adapter: Adapter) -> None:
    assert error_of(adapter.ask("abort"), 499)["code"] == "request_aborted"
    text = adapter.ask("abort", stream=True).text
    assert "request_aborted" in text
    assert "[DONE]" not in text


@pytest.mark.parametrize("position", range(4))
def test_failure_in_a_stream_is_its_last_event(
    adapter: Adapter, client: openai.OpenAI, position: int
) -> None:
    response = adapter.ask(f"fail-after {position}", stream=True)
    assert response.status_code == 200
    events = [event for event in response.text.split("\n\n") if event]
    assert "data: [DONE]" not in events
    error = json.loads(events[-1].removeprefix("data: "))["error"]
    assert error["code"] == "overloaded"
    assert adapter.seen.calls == 1
    with pytest.raises(openai.APIError, match="ENGINE_UNAVAILABLE"):
        list(
            client.chat.completions.create(
                model="demo",
                messages=[{"role": "user", "content": f"fail-after {position}"}],
                stream=True,
            )
        )


def test_paths_methods_and_content_types(adapter: Adapter) -> None:
    error_of(requests.get(f"{adapter.url}/v1/nothing", timeout=10), 404)
    response = requests.get(f"{adapter.url}/v1/chat/completions", timeout=10)
    error_of(response, 405)
    assert response.headers["allow"] == "OPTIONS, POST"
    error_of(requests.post(f"{adapter.url}/v1/chat/completions", data={"a": 1}, timeout=10), 415)


def test_images_that_are_too_large_together(adapter: Adapter) -> None:
    url = "data:image/png;base64," + base64.b64encode(bytes(600 * 1024)).decode()
    part = {"type": "image_url", "image_url": {"url": url}}
    assert adapter.ask(messages=[{"role": "user", "content": [part]}]).status_code == 200
    error = error_of(adapter.ask(messages=[{"role": "user", "content": [part, part]}]), 413)
    assert error["code"] == "request_too_large"
