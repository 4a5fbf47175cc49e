"""`/tokenize`, `/detokenize` and `/v1/chat/completions/render`."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from tests.rest_adapter.conftest import Adapter
from tests.rest_adapter.fake_tokens import CONTEXT


RENDER = "/v1/chat/completions/render"
PNG = "data:image/png;base64,iVBORw0KGgo="


def post(adapter: Adapter, path: str, **body: Any) -> requests.Response:
    return requests.post(adapter.url + path, json=body, timeout=30)


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "hi"},
        {"prompt": "hi", "model": "demo", "add_special_tokens": True, "return_token_strs": False},
        {"prompt": "hi", "model": None, "messages": []},
        {"messages": messages("hi")},
        {
            "messages": messages("hi"),
            "model": "org/model",
            "add_generation_prompt": True,
            "continue_final_message": False,
            "add_special_tokens": False,
            "chat_template_kwargs": {},
            "tools": [],
            "media_io_kwargs": {"image": {}},
        },
    ],
)
def test_tokenize(adapter: Adapter, body: dict[str, Any]) -> None:
    expected = {"count": 2, "max_model_len": CONTEXT, "tokens": [104, 105], "token_strs": None}
    assert post(adapter, "/tokenize", **body).json() == expected
    with_strings = post(adapter, "/tokenize", **(body | {"return_token_strs": True})).json()
    assert with_strings == expected | {"token_strs": ["h", "i"]}


def test_special_tokens_of_a_text_are_special_unless_told_otherwise(adapter: Adapter) -> None:
    assert post(adapter, "/tokenize", prompt="<end>").json()["count"] == 1
    assert post(adapter, "/tokenize", prompt="<end>", parse_special=False).json()["count"] == 5


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"tokens": [104, 105]}, "hi"),
        ({"tokens": []}, ""),
        ({"tokens": [[104], [105]]}, ["h", "i"]),
        ({"tokens": [104, 33]}, "h!"),
        ({"tokens": [104, 33], "skip_special_tokens": True, "model": "demo"}, "h"),
    ],
)
def test_detokenize(adapter: Adapter, body: dict[str, Any], text: object) -> None:
    assert post(adapter, "/detokenize", **body).json() == {"prompt": text}


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        ("/tokenize", {}, "prompt", "missing_required_parameter"),
        ("/tokenize", {"prompt": 5}, "prompt", "invalid_value"),
        ("/tokenize", {"prompt": "x", "model": "other"}, "model", "model_not_found"),
        ("/tokenize", {"prompt": "too long"}, "prompt", "context_length_exceeded"),
        (
            "/tokenize",
            {"messages": messages("x"), "parse_special": True},
            "parse_special",
            "invalid_value",
        ),
        (
            "/tokenize",
            {"messages": messages("x"), "chat_template": "{{ x }}"},
            "chat_template",
            "unsupported_parameter",
        ),
        ("/tokenize", {"messages": messages("fail-at spec.sampling.top_p")}, "top_p", None),
        ("/detokenize", {}, "tokens", "missing_required_parameter"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]", "invalid_value"),
        ("/detokenize", {"tokens": [-1]}, "tokens", "invalid_value"),
        ("/detokenize", {"tokens": [5000]}, "tokens", "invalid_value"),
        ("/detokenize", {"tokens": [[1]] * 65}, "tokens", "invalid_value"),
        (RENDER, {"messages": messages("x")}, "model", "missing_required_parameter"),
        (RENDER, {"model": "x", "messages": messages("x")}, "model", "model_not_found"),
        (
            RENDER,
            {"model": "demo", "messages": messages("x"), "mm_payload": "tensors"},
            "mm_payload",
            "unsupported_parameter",
        ),
        (
            RENDER,
            {"model": "demo", "messages": messages("x"), "return_token_offsets": True},
            "return_token_offsets",
            "unsupported_parameter",
        ),
        (
            RENDER,
            {"model": "demo", "messages": messages("fail-at spec.messages[0].parts[0].text")},
            "messages[0].content",
            None,
        ),
    ],
)
def test_refusals(
    adapter: Adapter, path: str, body: dict[str, Any], param: str, code: str | None
) -> None:
    response = post(adapter, path, **body)
    assert response.status_code in (400, 404), response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert code in (None, error["code"])


def test_render(adapter: Adapter) -> None:
    content = [
        {"type": "text", "text": "hi"},
        {"type": "image_url", "image_url": {"url": PNG}, "uuid": "mine"},
    ]
    asked = {
        "model": "demo",
        "messages": [{"role": "user", "content": content}],
        "seed": 2**63 - 1,
        "stop": ["!"],
        "max_tokens": 9,
        "logit_bias": {"5": 1.5},
        "stream": True,
        "mm_payload": "none",
        "request_id": "mine",
    }
    document = post(adapter, RENDER, **asked).json()
    assert document.pop("usage")["prompt_tokens"] == 2
    sampling = document.pop("sampling_params")
    assert sampling["seed"] == 2**63 - 1
    assert (sampling["max_tokens"], sampling["stop"], sampling["n"]) == (9, ["!"], 1)
    assert (sampling["logit_bias"], sampling["temperature"]) == ({"5": 1.5}, 0.7)
    assert document == {
        "request_id": "mine",
        "model": "demo",
        "token_ids": [104, 105],
        "prompt_text": "hi",
        "features": {
            "mm_hashes": {"image": ["00"]},
            "mm_placeholders": {"image": [{"offset": 0, "length": 4}]},
        },
        "images": [
            {
                "original_width": 8,
                "original_height": 8,
                "processed_width": 64,
                "processed_height": 64,
                "tokens": 4,
                "uuid": "mine",
            }
        ],
        "reasoning_ended": True,
        "stream": True,
        "cache_salt": None,
        "max_model_len": CONTEXT,
    }


def test_render_with_strings(adapter: Adapter) -> None:
    asked = {"model": "demo", "messages": messages("hi"), "return_token_strs": True}
    document = post(adapter, RENDER, **asked).json()
    assert document["token_strs"] == ["h", "i"]
    assert document["features"] is None


TOOL = {"name": "look", "parameters": {"type": "object"}}
SIBLINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "responses": (
        "/v1/responses",
        {
            "instructions": "Short.",
            "input": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_image", "image_url": PNG},
                        {"type": "input_text", "text": "hi"},
                    ],
                }
            ],
            "tools": [{"type": "function", **TOOL}],
            "max_output_tokens": 9,
            "cache_salt": "salt",
        },
    ),
    "messages": (
        "/v1/messages",
        {
            "system": "Short.",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "image",
                            "source": {"type": "base64", "data": PNG.partition(",")[2]},
                        },
                        {"type": "text", "text": "hi"},
                    ],
                }
            ],
            "tools": [{"name": "look", "input_schema": {"type": "object"}}],
            "max_tokens": 9,
        },
    ),
}


@pytest.mark.parametrize("api", SIBLINGS)
def test_other_apis_render_what_they_would_send(adapter: Adapter, api: str) -> None:
    path, body = SIBLINGS[api]
    assert post(adapter, path, model="demo", **body).status_code == 200
    sent = adapter.spec
    rendered = post(adapter, f"{path}/render", model="demo", stream=True, **body)
    assert rendered.status_code == 200, rendered.text
    asked = adapter.spec
    for spec in (sent, asked):
        spec.ClearField("request_id")
    assert asked == sent
    document = rendered.json()
    assert document["token_ids"] == [104, 105]
    assert document["prompt_text"] == "hi"
    assert (document["stream"], document["cache_salt"]) == (True, body.get("cache_salt"))
    assert document["sampling_params"]["max_tokens"] == 9
    assert document["features"]["mm_placeholders"] == {"image": [{"offset": 0, "length": 4}]}
    assert document["usage"]["input_tokens" if api == "messages" else "prompt_tokens"] == 2


@pytest.mark.parametrize("api", SIBLINGS)
def test_other_apis_refuse_in_their_form(adapter: Adapter, api: str) -> None:
    path, body = SIBLINGS[api]
    for changes in ({"model": "nobody"}, {"tools": 5}):
        refused = post(adapter, f"{path}/render", **({"model": "demo"} | body | changes))
        assert refused.status_code in (400, 404)
        assert ("type" in refused.json()) == (api == "messages")


TEXT = "/v1/completions"


def test_render_of_text_completions(adapter: Adapter) -> None:
    """A list, as of vLLM: a prompt for each of the request, with what generation would be told."""
    asked = {
        "model": "demo",
        "prompt": ["hi", "you"],
        "max_tokens": 9,
        "cache_salt": "salt",
        "bad_words": ["no"],
        "allowed_token_ids": [3, 5],
        "request_id": "mine",
    }
    assert post(adapter, TEXT, **asked).status_code == 200
    sent = list(adapter.seen.completion_specs)
    first, second = post(adapter, f"{TEXT}/render", **asked, return_token_strs=True).json()
    assert adapter.seen.completion_specs[2:] == sent
    sampling = first.pop("sampling_params")
    assert (sampling["max_tokens"], sampling["n"]) == (9, 1)
    assert (sampling["bad_words"], sampling["allowed_token_ids"]) == (["no"], [3, 5])
    assert first.pop("usage")["prompt_tokens"] == 2
    assert first == {
        "request_id": "mine-0",
        "model": "demo",
        "token_ids": [104, 105],
        "token_strs": ["h", "i"],
        "prompt_text": "hi",
        "features": None,
        "images": [],
        "reasoning_ended": True,
        "stream": False,
        "cache_salt": "salt",
        "max_model_len": CONTEXT,
    }
    assert (second["request_id"], second["prompt_text"]) == ("mine-1", "you")


def test_render_of_one_prompt_is_a_list_too(adapter: Adapter) -> None:
    asked: dict[str, Any] = {"model": "demo", "images": [PNG]}
    [found] = post(adapter, f"{TEXT}/render", prompt=[104, 105], **asked).json()
    assert found["prompt_text"] == "hi"
    assert found["features"]["mm_placeholders"] == {"image": [{"offset": 0, "length": 1}]}
    assert "token_strs" not in found


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 0}),
        (TEXT, {"prompt": "hi", "echo": True, "max_tokens": 0}),
    ],
)
def test_a_prompt_without_an_answer_is_rendered_as_asked(
    adapter: Adapter, path: str, body: dict[str, Any]
) -> None:
    """The service's own minimum is 1."""
    found = post(adapter, f"{path}/render", model="demo", **body).json()
    document = found[0] if isinstance(found, list) else found
    assert document["sampling_params"]["max_tokens"] == 0


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"model": "other"}, "model"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["x"] * 65}, "prompt"),
        ({"prompt": ["a", "b"], "images": [PNG]}, "images"),
        ({"prompt": ["x", "fail-at spec.token_ids"]}, "prompt"),
        ({"prompt": "fail-at spec.sampling.bad_words"}, "bad_words"),
        ({"mm_payload": "tensors"}, "mm_payload"),
        ({"return_token_offsets": True}, "return_token_offsets"),
        ({"suffix": "x"}, "suffix"),
    ],
)
def test_refusals_of_text_completions(
    adapter: Adapter, changes: dict[str, Any], param: str
) -> None:
    asked = {"model": "demo", "prompt": "x"} | changes
    refused = post(adapter, f"{TEXT}/render", **asked)
    assert refused.status_code in (400, 404), refused.text
    assert refused.json()["error"]["param"] == param
