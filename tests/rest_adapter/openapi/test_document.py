"""The OpenAPI document: complete, valid, and true of what is sent and answered."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
import json
from pathlib import Path
import re
from typing import Any

import jsonschema
import pytest
import requests

from rest_adapter.app import create_app
from rest_adapter.settings import AdapterSettings
from tests.rest_adapter.conftest import Adapter, open_adapter
from tests.rest_adapter.scripted_answers import call, script
from tests.support.openapi import Described, operations


FILES = sorted((Path(__file__).parents[2] / "clients" / "requests").glob("*.json"))
CASES = [
    pytest.param(request, id=f"{path.stem}: {request['name']}")
    for path in FILES
    for request in json.loads(path.read_text(encoding="utf-8"))["requests"]
    if request["expect"]["status"] == 200
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def storing() -> Iterator[Adapter]:
    with open_adapter(response_store="memory") as adapter:
        yield adapter


@pytest.fixture(scope="module")
def described(storing: Adapter) -> Described:
    response = requests.get(f"{storing.url}/openapi.json", timeout=30)
    assert response.status_code == 200
    return Described(response.json())


def test_every_route_is_described_and_no_other() -> None:
    app = create_app(AdapterSettings())
    found = {(r.path_format, m.lower()) for r in app.state.endpoints.routes for m in r.methods}
    described = {
        (path, method) for method, path, _ in operations(_document(app)) if path != "/openapi.json"
    }
    assert described | {("/openapi.json", "get")} == found
    assert {("/v1/messages", "post"), ("/metrics", "get"), ("/docs", "get")} <= found


def _document(app: Any) -> dict[str, Any]:
    [route] = [r for r in app.state.endpoints.routes if r.path_format == "/openapi.json"]
    document = json.loads(asyncio.run(route.endpoint()).body)
    assert isinstance(document, dict)
    return document


def test_it_is_valid(described: Described) -> None:
    document = described.document
    assert document["openapi"] == "3.1.0"
    for name, schema in document["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert re.fullmatch(r"[A-Za-z0-9]+", name), "a name that pydantic had to disambiguate"
        assert schema.get("description"), name
    text = json.dumps(document)
    for reference in set(re.findall(r'"\$ref": "#/components/(\w+)/(\w+)"', text)):
        assert reference[1] in document["components"][reference[0]]
    assert not re.search(r'"(ge|le|gt|lt)":', text), "a constraint that JSON schema does not know"
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(names) == len(set(names))
    for _, path, operation in operations(document):
        parameters = operation.get("parameters", ())
        in_path = {p["name"] for p in parameters if p["in"] == "path"}
        assert in_path == set(re.findall(r"{(\w+)}", path))
        for scheme in (name for each in operation["security"] for name in each):
            assert scheme in document["components"]["securitySchemes"]
        assert {"200", "400", "401", "500", "default"} <= set(operation["responses"])
        assert ("requestBody" in operation) == (
            "post" in document["paths"][path] and "cancel" not in path
        )


def test_examples_are_as_described(described: Described) -> None:
    examples = 0
    for method, path, operation in operations(described.document):
        if "requestBody" in operation:
            example = operation["requestBody"]["content"]["application/json"]["example"]
            assert described.errors_of_request(method, path, example) == []
            examples += 1
    assert examples >= 8


@pytest.mark.parametrize("case", CASES)
def test_requests_of_clients_are_as_described(described: Described, case: dict[str, Any]) -> None:
    """What is served is described: a gateway that checks requests lets them pass."""
    path = case.get("path", "/v1/chat/completions")
    asks_for_nothing: tuple[object, ...] = (
        None,
        False,
        "",
        [],
        {},
    )  # form-like clients send every field
    body = {name: v for name, v in case["body"].items() if v not in asks_for_nothing}
    assert described.errors_of_request("post", path, body) == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"model": "m"}),
        ("/v1/chat/completions", {"model": "m", "messages": [], "top_p": "0.5"}),
        ("/v1/chat/completions", {"model": "m", "messages": [{"role": "robot"}]}),
        ("/v1/messages", {"model": "m", "messages": [{"role": "user", "content": "x"}]}),
        ("/v1/decisions", {"model": "m", "input": "x", "questions": []}),
    ],
)
def test_wrong_requests_are_not_as_described(
    described: Described, path: str, body: dict[str, Any]
) -> None:
    assert described.errors_of_request("post", path, body)


REASONED = script(
    {"reasoning": "Hm."}, "Yes.", call(0, "", "call_1", "f"), call(0, "{}"), reason="TOOL_CALLS"
)
ASK = [{"role": "user", "content": "hi"}]
IMAGE_PART = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}, "uuid": "u"}
IMAGE = [{"role": "user", "content": [IMAGE_PART]}]
EVERYTHING = {
    "n": 2,
    "logprobs": True,
    "top_logprobs": 2,
    "prompt_logprobs": 1,
    "return_token_ids": True,
    "grounding": True,
    "stop": ["!"],
}
ANSWERS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": ASK}),
    ("/v1/chat/completions", {"messages": ASK} | EVERYTHING),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": REASONED}], "tools": TOOLS}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "fail-after 1"}]}),
    ("/v1/completions", {"prompt": "hi"}),
    ("/v1/completions", {"prompt": ["hi", "ho"], "echo": True} | EVERYTHING | {"logprobs": 2}),
    ("/v1/responses", {"input": "hi", "include": ["message.output_text.logprobs"]}),
    ("/v1/responses", {"input": REASONED, "tools": [{"type": "function", "name": "f"}]}),
    ("/v1/responses", {"input": REASONED, "reasoning": {"summary": "auto"}, "user": "u"}),
    ("/v1/responses", {"input": "fail-after 1"}),
    ("/v1/messages", {"messages": ASK, "max_tokens": 5}),
    ("/v1/messages", {"messages": [{"role": "user", "content": REASONED}], "max_tokens": 50}),
    ("/v1/messages", {"messages": [{"role": "user", "content": "fail-after 1"}], "max_tokens": 5}),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), ANSWERS)
def test_answers_are_as_described(
    storing: Adapter, described: Described, path: str, body: dict[str, Any], stream: bool
) -> None:
    body = {"model": "demo", "stream": stream} | body
    if stream and path.endswith("completions"):
        body["stream_options"] = {"include_usage": True}
    response = requests.post(storing.url + path, json=body, timeout=30)
    fails = "fail-after" in str(body) and not stream
    assert response.status_code == (503 if fails else 200), response.text
    described.check_answer("post", path, response)


DECIDED = {
    "model": "demo",
    "input": "x",
    "diagnostics": True,
    "questions": [
        {"type": "predicate", "instructions": "It is."},
        {"type": "choice", "instructions": "?", "choices": [{"value": "a"}, {"value": True}]},
        {"type": "score", "instructions": "?", "levels": [{"label": "a"}, {"label": "b"}]},
    ],
}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/decisions", DECIDED),
        ("/v1/responses/input_tokens", {"model": "demo", "input": "x"}),
        ("/v1/responses/compact", {"model": "demo", "input": "x"}),
        ("/v1/messages/count_tokens", {"model": "demo", "messages": ASK}),
        ("/tokenize", {"prompt": "x", "return_token_strs": True}),
        ("/tokenize", {"messages": ASK}),
        ("/detokenize", {"tokens": [[104], [105]]}),
        ("/v1/chat/completions/render", {"model": "demo", "messages": IMAGE}),
    ],
)
def test_other_answers_are_as_described(
    storing: Adapter, described: Described, path: str, body: dict[str, Any]
) -> None:
    response = requests.post(storing.url + path, json=body, timeout=30)
    assert response.status_code == 200, response.text
    described.check_answer("post", path, response)


def test_stored_responses_are_as_described(storing: Adapter, described: Described) -> None:
    image = {"type": "input_image", "image_url": "http://127.0.0.1/x.png", "detail": "low"}
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "x"}, image]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "done"},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "a"}]},
        {"role": "user", "content": "hello"},
    ]
    created = requests.post(
        f"{storing.url}/v1/responses", json={"model": "demo", "input": items}, timeout=30
    )
    [document] = described.check_answer("post", "/v1/responses", created)
    path = "/v1/responses/{response_id}"
    url = f"{storing.url}/v1/responses/{document['id']}"
    for suffix, query in (("", ""), ("", "?stream=true"), ("/input_items", "?limit=100")):
        response = requests.get(url + suffix + query, timeout=30)
        assert response.status_code == 200, response.text
        described.check_answer("get", path + suffix, response)
    response = requests.post(f"{url}/cancel", timeout=30)
    assert response.status_code == 400
    described.check_answer("post", f"{path}/cancel", response)
    for status in (200, 404):
        response = requests.delete(url, timeout=30)
        assert response.status_code == status
        described.check_answer("delete", path, response)


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("/health", "/health"),
        ("/ready", "/ready"),
        ("/version", "/version"),
        ("/v1/models", "/v1/models"),
        ("/v1/models/{name}", "/v1/models/org/model"),
        ("/v1/models/{name}", "/v1/models/unknown"),
    ],
)
def test_documents_are_as_described(
    storing: Adapter, described: Described, path: str, url: str
) -> None:
    storing.set_ready(True)
    described.check_answer("get", path, requests.get(storing.url + url, timeout=30))
    if path.startswith("/v1/models"):
        version = {"anthropic-version": "2023-06-01"}
        response = requests.get(storing.url + url, headers=version, timeout=30)
        assert "object" not in response.json()
        described.check_answer("get", path, response)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
@pytest.mark.parametrize("reason", ["QUEUE_FULL", "INVALID_IMAGE", "MODEL_LOADING", "INTERNAL"])
def test_errors_are_as_described(
    storing: Adapter, described: Described, path: str, reason: str
) -> None:
    ask = (
        {"input": f"fail {reason}"}
        if path.endswith("responses")
        else {"messages": [{"role": "user", "content": f"fail {reason}"}], "max_tokens": 5}
    )
    response = requests.post(storing.url + path, json={"model": "demo"} | ask, timeout=30)
    assert response.status_code >= 400
    assert str(response.status_code) in described.operation("post", path)["responses"]
    described.check_answer("post", path, response)


def test_a_key_is_optional_only_without_keys(tmp_path: Path, described: Described) -> None:
    """And the document itself needs none."""
    file = tmp_path / "keys"
    file.write_text("sesame\n")
    assert {} in described.operation("post", "/v1/messages")["security"]
    with open_adapter(api_key_file=str(file)) as adapter:
        for path in ("/openapi.json", "/docs"):
            assert requests.get(adapter.url + path, timeout=30).status_code == 200
        document = requests.get(f"{adapter.url}/openapi.json", timeout=30).json()
        assert document["paths"]["/v1/messages"]["post"]["security"] == [
            {"xApiKey": []},
            {"bearer": []},
        ]
        for method, path, operation in operations(document):
            url = adapter.url + path.replace("{name}", "x").replace("{response_id}", "x")
            response = requests.request(method, url, timeout=30)
            needs_key = response.status_code == 401
            assert needs_key == bool(operation["security"]), (method, path)
            if needs_key:
                Described(document).check_answer(method, path, response)


def test_no_pages_without_the_playground() -> None:
    with open_adapter(playground=False) as adapter:
        for path in ("/", "/docs", "/openapi.json"):
            assert requests.get(adapter.url + path, timeout=30).status_code == 404


def test_the_page_needs_nothing_from_elsewhere(storing: Adapter, described: Described) -> None:
    response = requests.get(f"{storing.url}/docs", timeout=30)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "script" not in response.headers["content-security-policy"]
    text = response.text
    assert not re.search(r"<script|<link|<img|<iframe|\ssrc=|https?://|style=", text)
    for method, path, _ in operations(described.document):
        assert f"<b>{method.upper()}</b> {path}</code>" in text
    targets = set(re.findall(r'href="#(\w+)"', text))
    assert targets
    assert targets <= set(re.findall(r'id="(\w+)"', text))
