"""GET /v1/models and /v1/models/{id} for Anthropic's clients, which `anthropic-version` tells."""

from __future__ import annotations

from typing import Any

from anthropic import Anthropic, NotFoundError
from anthropic.types import ErrorResponse, ModelInfo
from pydantic import TypeAdapter
import pytest
import requests

from rest_adapter.anthropic import models as anthropic_models
from tests.rest_adapter.conftest import Adapter
from tests.rest_adapter.fake_service import NAMES, model_of


VERSION = {"anthropic-version": "2023-06-01"}
CAPABILITIES = {
    *("batch", "citations", "code_execution", "context_management", "effort", "image_input"),
    *("pdf_input", "server_tools", "structured_outputs", "thinking"),
}


def get(adapter: Adapter, path: str, **options: Any) -> requests.Response:
    return requests.get(adapter.url + path, headers=VERSION, timeout=30, **options)


def test_the_client_lists_models(claude: Anthropic) -> None:
    models = list(claude.models.list())
    assert [model.id for model in models] == list(NAMES)
    for model in models:
        assert isinstance(model, ModelInfo)
        TypeAdapter(ModelInfo).validate_json(model.model_dump_json(), strict=True)
        assert not model.model_extra
        assert model.max_input_tokens == 4096
        assert model.capabilities is not None
        assert model.capabilities.image_input.supported
        assert model.capabilities.to_dict().keys() == CAPABILITIES


@pytest.mark.parametrize("limit", [1, 2, 1000])
@pytest.mark.parametrize("backwards", [False, True])
def test_pages(claude: Anthropic, limit: int, backwards: bool) -> None:
    if backwards:
        page = claude.models.list(limit=limit, before_id=NAMES[-1])
        assert [m.id for m in page.data] == list(NAMES[:-1])[-limit:]
        seen = [m.id for each in page.iter_pages() for m in reversed(each.data)]
        assert seen == list(reversed(NAMES[:-1]))
        return
    page = claude.models.list(limit=limit)
    assert [m.id for m in page.data] == list(NAMES[:limit])
    assert page.has_more == (limit < len(NAMES))
    assert [m.id for m in page] == list(NAMES)


def test_an_empty_page(claude: Anthropic) -> None:
    for page in (
        claude.models.list(after_id=NAMES[-1]),
        claude.models.list(before_id=NAMES[0]),
        claude.models.list(lifecycle=["retired", "deprecated"]),
        claude.models.list(after_id=NAMES[1], before_id=NAMES[0]),
    ):
        assert (page.data, page.has_more, page.first_id, page.last_id) == ([], False, None, None)
    assert claude.models.list(lifecycle=["retired", "active"]).data


@pytest.mark.parametrize(
    ("features", "enabled", "disabled"),
    [
        ((), False, True),
        (("reasoning",), True, False),
        (("reasoning", "thinking_switch"), True, True),
    ],
)
def test_thinking_is_told_as_requests_may_ask_for_it(
    features: tuple[str, ...], enabled: bool, disabled: bool
) -> None:
    served = model_of(NAMES[0])
    served.features.extend(features)
    told = anthropic_models.model(served)["capabilities"]["thinking"]
    assert told["supported"] == told["types"]["enabled"]["supported"] == enabled
    for name in ("disabled", "between_tools"):
        assert told["types"][name]["supported"] == disabled


@pytest.mark.parametrize("name", NAMES)
def test_one_model(claude: Anthropic, adapter: Adapter, name: str) -> None:
    assert get(adapter, f"/v1/models/{name}").json()["id"] == name
    model = claude.models.retrieve(name)
    assert (model.id, model.type, model.lifecycle) == (name, "model", "active")


@pytest.mark.parametrize(
    ("path", "status", "kind"),
    [
        ("/v1/models/claude-17", 404, "not_found_error"),
        ("/v1/models/", 200, None),
        ("/v1/models?limit=0", 400, "invalid_request_error"),
        ("/v1/models?limit=1001", 400, "invalid_request_error"),
        ("/v1/models?limit=x", 400, "invalid_request_error"),
        ("/v1/models?limit=000000000019999999", 400, "invalid_request_error"),
        ("/v1/models?limit=" + "9" * 5000, 400, "invalid_request_error"),
        ("/v1/models?limit=" + "0" * 12 + "9" * 5000, 400, "invalid_request_error"),
        ("/v1/models?limit=0000000000005", 200, None),
        ("/v1/models?limit=²", 400, "invalid_request_error"),
        ("/v1/models?after_id=nobody", 400, "invalid_request_error"),
        ("/v1/models?lifecycle=old", 400, "invalid_request_error"),
    ],
)
def test_errors(adapter: Adapter, path: str, status: int, kind: str | None) -> None:
    response = get(adapter, path)
    assert response.status_code == status, response.text
    assert response.headers["request-id"] == response.headers["x-request-id"]
    if kind is not None:
        error = ErrorResponse.model_validate_json(response.text, strict=True)
        assert error.error.type == kind
        assert error.request_id == response.headers["request-id"]


def test_an_unknown_model_raises(claude: Anthropic) -> None:
    with pytest.raises(NotFoundError):
        claude.models.retrieve("claude-17")


@pytest.mark.parametrize(
    ("path", "status"), [("/v1/files", 400), ("/v1/skills", 400), ("/v1/nothing", 404), ("/x", 404)]
)
def test_what_is_not_served(adapter: Adapter, path: str, status: int) -> None:
    response = get(adapter, path)
    assert response.status_code == status
    ErrorResponse.model_validate_json(response.text, strict=True)
    assert set(requests.get(adapter.url + path, timeout=30).json()) == {"error"}


def test_a_wrong_method(adapter: Adapter) -> None:
    response = requests.post(f"{adapter.url}/v1/models", headers=VERSION, json={}, timeout=30)
    assert response.status_code == 405
    assert response.json()["type"] == "error"


@pytest.mark.parametrize("path", ["/v1/models", f"/v1/models/{NAMES[0]}", "/v1/models/nobody"])
def test_others_get_the_form_of_openai(adapter: Adapter, path: str) -> None:
    document = requests.get(adapter.url + path, timeout=30).json()
    assert "error" in document or "object" in document
    assert document.get("type") is None


def test_the_header_changes_no_other_api(adapter: Adapter) -> None:
    body = {"model": "demo", "messages": [{"role": "user", "content": "x"}]}
    url = f"{adapter.url}/v1/chat/completions"
    response = requests.post(url, json=body, headers=VERSION, timeout=30)
    assert response.json()["object"] == "chat.completion"
    refused = requests.post(url, json={"model": 1}, headers=VERSION, timeout=30)
    assert set(refused.json()) == {"error"}
