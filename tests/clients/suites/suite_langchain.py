"""LangChain's own standard tests of chat models, for `ChatOpenAI` with this service behind it.

The demo model knows shapes and words in pictures, and neither follows instructions nor calls functions. Where a
standard test asks for that, its mechanism is tried here: what is called, how it is streamed, and what is sent back.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import httpx
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from pydantic import BaseModel
import pytest


BASE_URL = os.environ["QWENVL_URL"] + "/v1"
PICTURE = Path(os.environ["QWENVL_IMAGE"]).read_bytes()
NEEDS_A_LARGER_MODEL = {
    "test_agent_loop": "the model decides to call",
    "test_bind_runnables_as_tools": "arguments are free text",
    "test_json_mode": "the prompt names the keys",
    "test_structured_output": "values are free text",
    "test_structured_output_async": "values are free text",
    "test_structured_output_optional_param": "values are free text",
    "test_structured_output_pydantic_2_v1": "values are free text",
    "test_tool_calling": "arguments must be those of the prompt",
    "test_tool_calling_async": "arguments must be those of the prompt",
    "test_tool_calling_with_no_arguments": "the schema allows any arguments, and none must come",
    "test_tool_choice": "arguments are free text",
    "test_unicode_tool_call_integration": "arguments must be those of the prompt",
}
"""Standard tests whose result is the model's, not the service's: a model that follows instructions passes them."""
OF_THE_PACKAGE = {"test_serdes": "compares with a file of the package's own repository"}


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture in place of those that the tests download."""
    answer = mock.Mock(content=PICTURE)
    monkeypatch.setattr(httpx, "get", lambda *_, **__: answer)


@pytest.fixture(autouse=True)
def beyond_the_model(request: pytest.FixtureRequest) -> None:
    reason = (NEEDS_A_LARGER_MODEL | OF_THE_PACKAGE).get(request.node.originalname)
    if reason is not None:
        request.node.add_marker(pytest.mark.xfail(reason=reason, strict=False))


@tool
def paint(colour: Literal["red", "blue"]) -> str:
    """Paints the wall."""
    return f"The wall is {colour}."


class Seen(BaseModel):
    """What is in a picture."""

    colour: Literal["red", "green", "blue"]
    shape: Literal["circle", "square"]


class Service:
    """The chat model of the standard tests, and what it can do."""

    responses_api = False

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": "qwen-vl",
            "base_url": BASE_URL,
            "api_key": "none",
            "max_retries": 0,
            "stream_usage": True,
            "use_responses_api": self.responses_api,
        }

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_image_tool_message(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True


class TestUnit(Service, ChatModelUnitTests):
    """Standard unit tests."""


class Limited(Service):
    """Greedy and short answers."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return super().chat_model_params | {"temperature": 0, "max_tokens": 150}


class TestChat(Limited, ChatModelIntegrationTests):
    """Standard integration tests, over chat completions."""


class TestResponses(Limited, ChatModelIntegrationTests):
    """Standard integration tests, over the Responses API."""

    responses_api = True


@pytest.fixture(params=[TestChat, TestResponses], ids=["chat", "responses"])
def model(request: pytest.FixtureRequest) -> ChatOpenAI:
    return ChatOpenAI(**request.param().chat_model_params)


def about_the_picture() -> HumanMessage:
    data = base64.b64encode(PICTURE).decode()
    image = {"type": "image", "base64": data, "mime_type": "image/png"}
    return HumanMessage([image, {"type": "text", "text": "What is in this picture?"}])


def test_the_picture_is_seen(model: ChatOpenAI) -> None:
    assert "red circle" in model.invoke([about_the_picture()]).text.lower()


async def test_a_forced_call_and_its_result(model: ChatOpenAI) -> None:
    """What the standard tests of tools ask for, with arguments that a grammar can hold."""
    bound = model.bind_tools([paint], tool_choice="any", strict=True)
    asked = HumanMessage("Paint the wall red.")
    whole = bound.invoke([asked])
    streamed = None
    for chunk in bound.stream([asked]):
        streamed = chunk if streamed is None else streamed + chunk
    later = await bound.ainvoke([asked])
    for message in (whole, streamed, later):
        assert isinstance(message, AIMessage)
        [call] = message.tool_calls
        assert (call["name"], call["args"].keys()) == ("paint", {"colour"})
        assert call["args"] == whole.tool_calls[0]["args"]
    result = paint.invoke(whole.tool_calls[0])
    assert isinstance(result, ToolMessage)
    answer = model.bind_tools([paint], tool_choice="none").invoke([asked, whole, result])
    assert isinstance(answer, AIMessage)
    assert answer.tool_calls == []


async def test_structured_output_of_closed_values(model: ChatOpenAI) -> None:
    for method in ("json_schema", "function_calling"):
        structured = model.with_structured_output(Seen, method=method, strict=True)
        seen = structured.invoke([about_the_picture()])
        assert isinstance(seen, Seen)
        assert list(structured.stream([about_the_picture()]))[-1] == seen
        assert await structured.ainvoke([about_the_picture()]) == seen
