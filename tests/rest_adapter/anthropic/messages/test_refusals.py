"""What is refused, with the path of the field as Anthropic writes it, and what is accepted without effect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
from anthropic import Anthropic
import orjson
import pytest

from rest_adapter.anthropic.errors import render_error
from rest_adapter.errors import of_reason
from tests.rest_adapter.anthropic.conftest import body_of, post
from tests.rest_adapter.conftest import Adapter, open_adapter


TOOL: dict[str, Any] = {"name": "f", "input_schema": {"type": "object"}}
IMAGE: dict[str, Any] = {"type": "image", "source": {"type": "url", "url": "https://h/a.png"}}


@pytest.fixture(scope="module")
def strict_adapter() -> Iterator[Adapter]:
    with open_adapter(strict_fields=True) as adapter:
        yield adapter


def blocks(*content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [*content]}]}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        ({"messages": ["x"]}, "messages.0"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        (blocks(), "messages.0.content"),
        ({"messages": [{"role": "system", "content": []}]}, "messages.0.content"),
        ({"messages": [{"role": "system", "content": [{"type": "text", "text": ""}]}]}, "messages"),
        (blocks("x"), "messages.0.content.0"),
        (blocks({"text": "x"}), "messages.0.content.0.type"),
        (blocks({"type": "text"}), "messages.0.content.0.text"),
        (blocks({"type": "odd"}), "messages.0.content.0.type"),
        (blocks({"type": "document", "source": {}}), "messages.0.content.0.type"),
        (blocks({"type": "search_result"}), "messages.0.content.0.type"),
        (blocks({"type": "container_upload", "file_id": "f"}), "messages.0.content.0.type"),
        (blocks({"type": "server_tool_use"}), "messages.0.content.0.type"),
        (blocks({"type": "tool_use", "id": "c"}), "messages.0.content.0.type"),
        (blocks({"type": "thinking", "thinking": ""}), "messages.0.content.0.type"),
        (blocks({"type": "image"}), "messages.0.content.0.source"),
        (
            blocks({"type": "image", "source": {"type": "file", "file_id": "f"}}),
            "messages.0.content.0.source.type",
        ),
        (
            blocks({"type": "image", "source": {"type": "base64", "data": "?"}}),
            "messages.0.content.0.source.data",
        ),
        (
            blocks({"type": "image", "source": {"type": "url", "url": ""}}),
            "messages.0.content.0.source.url",
        ),
        (
            blocks(IMAGE | {"transformations": {"oversized_image": "crop"}}),
            "messages.0.content.0.transformations.oversized_image",
        ),
        (
            blocks(IMAGE | {"transformations": {"rotate": 90}}),
            "messages.0.content.0.transformations.rotate",
        ),
        (
            blocks({"type": "tool_result", "tool_use_id": "c", "content": [{"type": "document"}]}),
            "messages.0.content.0.content.0.type",
        ),
        (blocks({"type": "tool_result", "content": "x"}), "messages.0.content.0.tool_use_id"),
        ({"system": [IMAGE]}, "system.0.type"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1023}}, "thinking.budget_tokens"),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 2000}, "max_tokens": 2000},
            "thinking.budget_tokens",
        ),
        ({"output_config": {"effort": "huge"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"output_config": {"format": {"type": "regex"}}}, "output_config.format.type"),
        ({"output_config": {"task_budget": {"tokens": 1}}}, "output_config.task_budget"),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema"),
        ({"tools": [TOOL, {"type": "web_search_20250305", "name": "w"}]}, "tools.1.type"),
        ({"tools": [{"type": "mcp_toolset", "mcp_server_name": "m"}]}, "tools.0.type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "must"}}, "tool_choice.type"),
        ({"container": "c1"}, "container"),
        ({"thread": {"type": "create"}}, "thread"),
        ({"compaction": {"type": "summary"}}, "compaction"),
        ({"mcp_servers": [{"url": "https://h/"}]}, "mcp_servers"),
        ({"context_management": {"edits": [1]}}, "context_management.edits.0"),
        (
            {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
            "context_management.edits.0.type",
        ),
        ({"context_management": {"forget": True}}, "context_management.forget"),
        ({"stop": "x"}, "stop"),
        ({"prompt": "x"}, "prompt"),
        ({"temperature": "0.5"}, "temperature"),
        ({"stop_sequences": "x"}, "stop_sequences"),
    ],
)
def test_refused(adapter: Adapter, fields: dict[str, Any], path: str) -> None:
    for where in ("/v1/messages", "/v1/messages/count_tokens"):
        if "count" in where and path in ("max_tokens", "thinking.budget_tokens"):
            continue
        response = post(adapter, path=where, **fields)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert f"'{path}'" in error["message"]
    assert adapter.seen.calls == 0


ACCEPTED: dict[str, Any] = {
    "anthropic_version": "bedrock-2023-05-31",
    "cache_control": {"type": "ephemeral"},
    "container": None,
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "diagnostics": {"previous_message_id": None},
    "inference_geo": "eu",
    "mcp_servers": [],
    "metadata": {"user_id": "u"},
    "service_tier": "auto",
    "speed": "standard",
    "user_profile_id": "u",
    "workspace_id": "w",
    "output_config": {"effort": None, "format": None},
    "tools": [
        TOOL
        | {"cache_control": {"type": "ephemeral"}, "eager_input_streaming": True}
        | {"defer_loading": False, "input_examples": [{}], "allowed_callers": ["direct"]}
    ],
    "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a", "citations": [], "cache_control": None},
                IMAGE | {"cache_control": {"type": "ephemeral", "ttl": "1h"}},
            ],
        },
        {
            "role": "assistant",
            "id": "msg_1",
            "type": "message",
            "content": [
                {"type": "thinking", "thinking": "t", "signature": "s"},
                {"type": "redacted_thinking", "data": "ZA=="},
                {
                    "type": "tool_use",
                    "id": "c",
                    "name": "f",
                    "input": {},
                    "caller": {"type": "direct"},
                },
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c"}]},
    ],
}


def test_known_fields_without_effect_are_no_unknown_ones(strict_adapter: Adapter) -> None:
    headers = {"anthropic-version": "2099-01-01", "anthropic-beta": "x,y"}
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        response = post(strict_adapter, path=path, headers=headers, **ACCEPTED)
        assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"loudly": True}, "loudly"),
        ({"tools": [TOOL | {"loudly": 1}]}, "tools.0.loudly"),
        ({"system": [{"type": "text", "text": "s", "loudly": 1}]}, "system.0.loudly"),
        (blocks({"type": "text", "text": "s", "loudly": 1}), "messages.0.content.0.loudly"),
        (
            {"messages": [{"role": "user", "content": "x", "loudly": 1}]},
            "messages.0.loudly",
        ),
    ],
)
def test_unknown_fields_are_named(
    strict_adapter: Adapter, fields: dict[str, Any], path: str
) -> None:
    response = post(strict_adapter, **fields)
    assert response.status_code == 400
    assert f"'{path}'" in response.json()["error"]["message"]


def test_an_image_that_is_too_large_has_the_details_of_the_client() -> None:
    error = of_reason(
        "IMAGE_TOO_LARGE",
        "The image has 900 x 300 pixels.",
        param="messages[0].content[1].content[2].source.data",
        metadata={"width": "900", "height": "300", "max_width": "300", "max_height": "100"},
    )
    _, body = render_error(error)
    details = orjson.loads(body)["error"]["details"]
    assert details == {
        "error_code": "image_dimensions_too_large",
        "max_side_length_pixels": 300,
        "paths": ["messages.0.content.1.content.2"],
    }
    plain = of_reason("IMAGE_TOO_LARGE", "Too many bytes.", param="x", metadata={"max_bytes": "3"})
    assert "details" not in orjson.loads(render_error(plain)[1])["error"]


def test_bodies_are_what_the_package_sends(claude: Anthropic, adapter: Adapter) -> None:
    """The check of types above is not stricter than the package's own requests."""
    with pytest.raises(anthropic.BadRequestError) as caught:
        claude.messages.create(**body_of([{"type": "document", "source": {"type": "text"}}]))
    assert "messages.0.content.0.type" in caught.value.message


OVER_BOTH = (
    "input length and `max_tokens` exceed context limit: 40 + 2040 > 2048, decrease input length or `max_tokens` and"
    " try again"
)
WINDOW = {"max_context_tokens": "2048"}


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (WINDOW | {"prompt_tokens": "3010"}, "prompt is too long: 3010 tokens > 2048 maximum"),
        (WINDOW | {"prompt_tokens": "2048"}, "prompt is too long: 2048 tokens > 2047 maximum"),
        (
            WINDOW | {"min_prompt_tokens": "9000"},
            "prompt is too long: at least 9000 tokens > 2048 maximum",
        ),
        ({}, "prompt is too long: The conversation has too many characters."),
        (
            WINDOW | {"prompt_tokens": "40", "max_tokens": "2040"},
            OVER_BOTH,
        ),
    ],
)
def test_an_overflow_is_told_in_anthropics_words(told: dict[str, str], message: str) -> None:
    """Claude Code compacts the conversation, or asks for less, when it reads them, and LiteLLM has a class for them."""
    said = "The conversation has too many characters."
    error = of_reason("CONTEXT_LENGTH_EXCEEDED", said, param="messages", metadata=told)
    _, body = render_error(error)
    assert orjson.loads(body)["error"] == {"type": "invalid_request_error", "message": message}


def test_an_overflow_of_a_request(adapter: Adapter) -> None:
    adapter.seen.context_tokens = 100
    for tokens, words in ((120, "120 tokens > 100 maximum"), (1000, "at least 500 tokens > 100 ")):
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            message = post(adapter, "x" * tokens, path=path).json()["error"]["message"]
            assert message.startswith(f"prompt is too long: {words}")
