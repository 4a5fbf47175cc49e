"""Paths and methods as clients write them."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
import pytest
import requests

from rest_adapter.paths import tidy
from tests.rest_adapter.conftest import Adapter, open_adapter
from tests.rest_adapter.raw_http import CHAT, answers_of, chat_body, connect, head, read_to_end


@pytest.mark.parametrize(
    "path",
    [
        CHAT,
        f"{CHAT}/",
        f"/{CHAT}",
        "//v1//chat///completions//",
        f"{CHAT}?api-version=2024-10-21",
        "/v1/chat%2Fcompletions",
        f"http://127.0.0.1:8000{CHAT}",
    ],
)
def test_slashes_do_not_matter(adapter: Adapter, path: str) -> None:
    """No redirect: clients would repeat a POST as GET, or without its body."""
    body = chat_body("found")
    with connect(adapter) as connection:
        lines = (f"content-length: {len(body)}", "connection: close")
        connection.sendall(head("POST", path, *lines) + body)
        (answer,) = answers_of(read_to_end(connection), ["POST"])
    assert (answer.status, answer.text) == (200, "found")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/", "//v1/models/demo", "/health/"])
def test_slashes_of_get(adapter: Adapter, path: str) -> None:
    assert requests.get(adapter.url + path, timeout=10).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/ready", "/version", "/v1/models", "/v1/models/demo"])
def test_head_wherever_get_is(adapter: Adapter, path: str) -> None:
    got, asked = (
        requests.request(method, adapter.url + path, timeout=10) for method in ("GET", "HEAD")
    )
    assert asked.status_code == got.status_code == 200
    assert asked.content == b""
    for name in ("content-type", "content-length"):
        assert asked.headers[name] == got.headers[name]


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("/chat/completions", CHAT),
        ("/completions", "/v1/completions"),
        ("/openai/v1/responses", "/v1/responses"),
        ("/responses/resp_1/cancel", "/v1/responses/resp_1/cancel"),
        ("/models", "/v1/models"),
        ("/v1/v1/chat/completions", CHAT),
        ("/api/v1/chat/completions", CHAT),
        ("/openai/v1/models", "/v1/models"),
        ("/compatible-mode/v1/chat/completions", CHAT),
        ("/v1/chat/completions/chat/completions", None),
        ("/openai/chat/completions/", CHAT),
        ("/anthropic/v1/messages", "/v1/messages"),
        ("/messages/count_tokens", "/v1/messages/count_tokens"),
    ],
)
def test_the_right_path_is_named(adapter: Adapter, path: str, right: str | None) -> None:
    response = requests.post(adapter.url + path, data=chat_body(), timeout=10)
    assert response.status_code == (404 if right else 400)
    message = response.json()["error"]["message"]
    assert (right or CHAT) in message


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/conversations", "Conversations"),
        ("/v1/conversations/conv_1/items", "Conversations"),
        ("/conversations", "Conversations"),
        ("/openai/v1/conversations", "Conversations"),
        ("/v1/complete", "Anthropic Text"),
        ("/v1/embeddings", "embeddings"),
        ("/v1/images/generations", "image"),
        ("/v1/audio/transcriptions", "audio"),
        ("/v1/moderations", "moderation"),
        ("/v1/files", "files"),
        ("/v1/batches", "batches"),
        ("/v1/assistants", "Assistants"),
        ("/v1/threads/t1/runs", "Assistants"),
        ("/v1/rerank", "reranking"),
        ("/v1/realtime", "Realtime"),
        ("/api/chat", "Ollama"),
        ("/api/generate", "Ollama"),
        ("/api/tags", "Ollama"),
        ("/v1beta/models/qwen-vl:generateContent", "Gemini"),
        ("/v1/models/qwen-vl:generateContent", "Gemini"),
        ("/openai/deployments/demo/chat/completions", "Azure"),
        ("/api/v1/services/aigc/multimodal-generation/generation", "DashScope"),
        ("/v2/models/demo/infer", "Inference Protocol"),
        ("/model/demo/converse", "Bedrock"),
        ("/generate", "native"),
        ("/infill", "native"),
        ("/invocations", "native"),
        (f"{CHAT}/chatcmpl-1", "stored"),
    ],
)
def test_other_apis_are_refused_by_name(adapter: Adapter, path: str, name: str) -> None:
    response = requests.post(adapter.url + path, data=b"{}", timeout=10)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "unsupported_api")
    assert name in error["message"]
    for served in (f"POST {CHAT}", "POST /v1/completions", "GET /v1/models"):
        assert served in error["message"]


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/nothing", "/v1/respons", "/redoc"])
def test_unknown_paths(adapter: Adapter, path: str) -> None:
    for method in ("GET", "POST"):
        response = requests.request(method, adapter.url + path, timeout=10)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (404, "not_found")
        assert f"POST {CHAT}" in error["message"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD"])
def test_wrong_methods_name_the_right_one(adapter: Adapter, method: str) -> None:
    response = requests.request(method, adapter.url + CHAT, timeout=10)
    assert response.status_code == 405
    assert response.headers["allow"] == "OPTIONS, POST"
    if method != "HEAD":
        assert f"does not support {method}, but POST" in response.json()["error"]["message"]


def test_a_wrong_method_of_what_can_be_got(adapter: Adapter) -> None:
    response = requests.post(f"{adapter.url}/v1/models", timeout=10)
    assert (response.status_code, response.headers["allow"]) == (
        405,
        "GET, HEAD, OPTIONS",
    )


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        (CHAT, "OPTIONS, POST"),
        ("//v1/models/", "GET, HEAD, OPTIONS"),
        ("/v1/models/org/model", "GET, HEAD, OPTIONS"),
        ("/health", "GET, HEAD, OPTIONS"),
    ],
)
def test_options_tell_the_methods_of_a_path(adapter: Adapter, path: str, methods: str) -> None:
    response = requests.options(adapter.url + path, timeout=10)
    assert (response.status_code, response.headers["allow"]) == (204, methods)
    assert response.content == b""


def test_options_of_what_is_not_served(adapter: Adapter) -> None:
    response = requests.options(adapter.url + "/v1/nothing", timeout=10)
    assert response.status_code == 404


def test_options_need_no_key(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    with open_adapter(api_key_file=str(keys)) as adapter:
        assert requests.options(adapter.url + CHAT, timeout=10).status_code == 204
        assert requests.options(adapter.url + "/v1/nothing", timeout=10).status_code == 401


def test_a_path_of_many_parts_is_answered_quickly(adapter: Adapter) -> None:
    response = requests.get(adapter.url + "/a" * 10_000, timeout=10)
    assert response.status_code == 404
    assert len(response.text) < 1200


@given(st.text(st.sampled_from("/av1:.%?")))
def test_tidying_is_done_once(path: str) -> None:
    assert tidy(tidy("/" + path)) == tidy("/" + path)
