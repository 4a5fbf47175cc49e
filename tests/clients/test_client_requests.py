"""Requests in the shapes that real clients send, against the running product with the demo model.

Each file in `requests/` has the requests of one client, and what it may expect: see `README.md` there.
"""

from __future__ import annotations

import base64
import inspect
import json
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from tests.e2e.conftest import Served
from tests.support.images import draw
from tests.support.strict_answers import problems_of


FILES = sorted((Path(__file__).parent / "requests").glob("*.json"))
PNG = draw("red", "circle").png
CASES = [
    pytest.param(request, id=f"{path.stem}: {request['name']}")
    for path in FILES
    for request in json.loads(path.read_text())["requests"]
]
STRICT = [case for case in CASES if "strict" in case.values[0]["expect"]]  # type: ignore[index]


def filled(value: Any, url: str) -> Any:
    """The value with the images and the long text in place of their names."""
    if isinstance(value, dict):
        return {name: filled(inner, url) for name, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, url) for inner in value]
    encoded = base64.b64encode(PNG).decode()
    named = {
        "$DATA_URI": f"data:image/png;base64,{encoded}",
        "$BASE64": encoded,
        "$URL": url,
        "$LONG": "word " * 9000,
        "$HUGE": json.dumps([{"type": "image", "data": encoded * 400}]),
    }
    return named.get(value, value) if isinstance(value, str) else value


def check_stream(chunks: list[dict[str, Any]], *, usage: bool) -> None:
    """What clients rely on: constant ids, the role once, one end for each choice, the usage last."""
    for name in ("id", "created", "model", "object", "system_fingerprint"):
        assert len({chunk[name] for chunk in chunks}) == 1
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    for index in {choice["index"] for choice in choices}:
        own = [choice for choice in choices if choice["index"] == index]
        roles = ["role" in choice.get("delta", {}) for choice in own]
        assert not any(roles[1:])
        ends = [choice["finish_reason"] for choice in own]
        assert ends[-1] is not None
        assert not any(ends[:-1])
    assert (not chunks[-1]["choices"]) == usage


class Answer:
    """A response: its text, usage and other fields, from one document or from a stream."""

    def __init__(self, response: requests.Response, *, streamed: bool) -> None:
        assert response.status_code == 200, response.text
        if not streamed:
            self.chunks = [response.json()]
            choices = self.chunks[0]["choices"]
            self.finish_reasons = [choice["finish_reason"] for choice in choices]
            self.text = "".join(
                (c["text"] if "text" in c else c["message"]["content"]) or "" for c in choices
            )
            self.calls = [
                call["function"]["name"]
                for choice in choices
                for call in choice.get("message", {}).get("tool_calls", ())
            ]
            return
        lines = [line for line in response.text.split("\n\n") if line.startswith("data: ")]
        assert lines[-1] == "data: [DONE]"
        self.chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
        check_stream(self.chunks, usage=not self.chunks[-1]["choices"])
        choices = [choice for chunk in self.chunks for choice in chunk["choices"]]
        self.finish_reasons = [c["finish_reason"] for c in choices if c["finish_reason"]]
        self.text = "".join(
            (c["text"] if "text" in c else c["delta"].get("content")) or "" for c in choices
        )
        self.calls = [
            call["function"]["name"]
            for choice in choices
            for call in choice.get("delta", {}).get("tool_calls", ())
            if "id" in call
        ]

    @property
    def usage(self) -> dict[str, Any] | None:
        usage = self.chunks[-1].get("usage")
        assert usage is None or isinstance(usage, dict)
        return usage

    def field(self, name: str) -> Any:
        return next(chunk[name] for chunk in self.chunks if name in chunk)


def send(served: Served, case: dict[str, Any], body: dict[str, Any]) -> requests.Response:
    """The answer, which has the types of the clients whatever it is."""
    path = case.get("path", "/v1/chat/completions")
    response = requests.post(served.http + path, json=body, timeout=120)
    kind = response.headers["content-type"]
    assert not problems_of(path, response.status_code, kind, response.text)
    return response


@pytest.mark.parametrize("case", CASES)
def test_request(product: Served, image_host: str, case: dict[str, Any]) -> None:
    url = f"http://{image_host}/red-circle.png"
    body, expected = filled(case["body"], url), case["expect"]
    response = send(product, case, body)
    if expected["status"] != 200:
        assert response.status_code == expected["status"], response.text
        check_error(response.json()["error"], expected)
        return
    answer = Answer(response, streamed=bool(body.get("stream")))
    assert answer.finish_reasons
    assert set(answer.finish_reasons) <= {"stop", "length", "tool_calls"}
    check_answer(answer, expected, streamed=bool(body.get("stream")))
    if "same_prompt" in expected:
        other = body | {"messages": expected["same_prompt"]} | expected.get("same_options", {})
        assert prompt_ids(product, case, body) == prompt_ids(product, case, other)


def check_error(error: dict[str, Any], expected: dict[str, Any]) -> None:
    assert error["param"] == expected["param"], error
    assert error["type"] == "invalid_request_error"
    assert error["code"] == expected.get("code", error["code"])
    assert expected.get("message", "") in error["message"]
    if "code" not in expected:
        name = expected["param"].rpartition(".")[2].partition("[")[0]
        assert name in error["message"] or error["code"].startswith(("invalid_image", "image_"))
    for internal in ("Input should", "1e-", "e+", ".str", "pydantic", "spec."):
        assert internal not in error["message"]


def check_answer(answer: Answer, expected: dict[str, Any], *, streamed: bool) -> None:
    assert expected.get("answer", "") in answer.text.lower()
    assert answer.calls == expected.get("calls", answer.calls)
    if streamed and "stream_usage" in expected:
        assert (answer.usage is not None) == expected["stream_usage"]
    if "images" in expected and answer.usage is not None:
        tokens = answer.usage["prompt_tokens_details"]["image_tokens"]
        assert tokens >= expected["images"]
    if expected.get("clamped"):
        used = answer.usage
        assert used is not None
        assert answer.field("effective_max_tokens") + used["prompt_tokens"] == 4096


def prompt_ids(served: Served, case: dict[str, Any], body: dict[str, Any]) -> list[int]:
    asked = body | {"return_token_ids": True, "max_tokens": 1, "stream": False}
    response = send(served, case, asked)
    assert response.status_code == 200, response.text
    ids = response.json()["prompt_token_ids"]
    assert isinstance(ids, list)
    assert ids
    return ids


@pytest.mark.parametrize("case", STRICT)
def test_strict_fields(strict_product: Served, case: dict[str, Any]) -> None:
    """What is only ignored with a log line is refused with --strict-fields."""
    response = send(strict_product, case, filled(case["body"], ""))
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (case["expect"]["strict"], "unknown_parameter")


@pytest.mark.parametrize("stream", [True, False])
def test_an_overflow_starts_the_fallbacks_of_clients(product: Served, stream: bool) -> None:
    """By the class, the code or the words that LiteLLM, LangChain, CrewAI and OpenHands look for."""
    with (
        openai.OpenAI(base_url=f"{product.http}/v1", api_key="none") as client,
        pytest.raises(openai.BadRequestError) as caught,
    ):
        client.chat.completions.create(
            model="qwen-vl", messages=[{"role": "user", "content": "word " * 9000}], stream=stream
        )
    assert caught.value.code == "context_length_exceeded"
    text = str(caught.value)
    assert "context_length_exceeded" in text  # LangChain
    for words in ("this model's maximum context length is", "maximum context length"):
        assert words in text.lower()  # LiteLLM; CrewAI and others


def test_the_python_sdk_converses_about_an_image(product: Served) -> None:
    """Answer, history as the SDK dumps it, and a stream with its helper."""
    content: Any = filled([{"type": "image_url", "image_url": {"url": "$DATA_URI"}}], "")
    history: list[Any] = [{"role": "user", "content": ["What is in the picture?", *content]}]
    with openai.OpenAI(base_url=f"{product.http}/v1", api_key="none") as client:
        first = client.chat.completions.create(model="qwen-vl", messages=history, temperature=0)
        assert "red circle" in (first.choices[0].message.content or "").lower()
        history += [first.choices[0].message.model_dump(), {"role": "user", "content": "Thanks."}]
        with client.chat.completions.stream(
            model="qwen-vl", messages=history, temperature=0
        ) as stream:
            final = stream.get_final_completion()
    assert final.choices[0].message.content
    assert final.choices[0].finish_reason in ("stop", "length")


def test_strict_max_tokens(strict_product: Served) -> None:
    body = {"model": "qwen-vl", "messages": [{"role": "user", "content": "x"}], "max_tokens": 10**6}
    response = send(strict_product, {}, body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == ("max_tokens", "context_length_exceeded")
    assert "--strict-max-tokens" in error["message"]


OPENAI_CASES = [
    case
    for case in CASES
    if str(case.id).startswith("openai_python")
    and case.values[0]["expect"]["status"] == 200  # type: ignore[index]
    and "path" not in case.values[0]  # type: ignore[operator]
]
_OF_THE_SDK = set(inspect.signature(openai.resources.chat.Completions.create).parameters)


@pytest.mark.parametrize("case", OPENAI_CASES)
def test_the_same_with_the_python_sdk(product: Served, case: dict[str, Any]) -> None:
    body = filled(case["body"], "")
    known = {name: value for name, value in body.items() if name in _OF_THE_SDK}
    rest = {name: value for name, value in body.items() if name not in _OF_THE_SDK}
    with openai.OpenAI(base_url=f"{product.http}/v1", api_key="none") as client:
        answer: Any = client.chat.completions.create(**known, extra_body=rest)
        if not body.get("stream"):
            assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")
            assert answer.choices[0].message.content or answer.choices[0].message.tool_calls
            return
        ends = [choice.finish_reason for chunk in answer for choice in chunk.choices]
    assert ends[-1] in ("stop", "length", "tool_calls")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer EMPTY"},
        {"authorization": "Bearer sk-none", "x-api-key": "other"},
        {"authorization": "Bearer "},
        {"accept": "*/*", "api-key": "none"},
    ],
)
def test_keys_that_clients_insist_on(product: Served, headers: dict[str, str]) -> None:
    """Without a key file any key will do, and none."""
    body = {"model": "qwen-vl", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    url = f"{product.http}/v1/chat/completions"
    assert requests.post(url, json=body, headers=headers, timeout=60).status_code == 200


@pytest.mark.parametrize("path", ["/dashboard/billing/subscription", "/v1/dashboard/billing/usage"])
def test_pages_of_accounts_are_not_found(product: Served, path: str) -> None:
    response = requests.get(product.http + path, timeout=60)
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("model", ["openai/qwen-vl", "gpt-4o", ""])
def test_another_model_gets_the_served_names(product: Served, model: str) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
    response = send(product, {}, body)
    assert response.status_code == 404
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "qwen-vl-demo" in error["message"] or "/v1/models" in error["message"]
