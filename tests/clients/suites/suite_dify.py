"""The code of Dify's plugins for OpenAI-compatible services, with the settings of the documentation."""

from __future__ import annotations

from typing import Any

from dify_plugin.entities.model.message import (
    ImagePromptMessageContent,
    PromptMessageTool,
    TextPromptMessageContent,
    UserPromptMessage,
)
from dify_plugin.interfaces.model.openai_compatible.llm import OAICompatLargeLanguageModel
import pytest


class Model(OAICompatLargeLanguageModel):
    """The model of the plugin; its price table and schema come from the settings."""

    def _get_num_tokens_by_gpt2(self, text: str) -> int:
        """An estimate for streams without usage, for which the original downloads a vocabulary."""
        return len(text)


@pytest.fixture
def credentials(url: str) -> dict[str, Any]:
    return {
        "endpoint_url": f"{url}/v1",
        "api_key": "none",
        "mode": "chat",
        "context_size": "4096",
        "max_tokens_to_sample": "1024",
        "function_calling_type": "tool_call",
        "stream_function_calling": "supported",
        "vision_support": "support",
        "stream_mode_delimiter": "\\n\\n",
    }


@pytest.fixture
def model() -> Model:
    return Model(model_schemas=[])


def asked(base64_picture: str) -> list[Any]:
    image = ImagePromptMessageContent(
        format="png", base64_data=base64_picture, mime_type="image/png"
    )
    text = TextPromptMessageContent(data="What is in this picture?")
    return [UserPromptMessage(content=[image, text])]


def test_the_settings_are_valid(model: Model, credentials: dict[str, Any]) -> None:
    model.validate_credentials("qwen-vl", credentials)


def ask(model: Model, credentials: dict[str, Any], *arguments: Any, stream: bool) -> list[Any]:
    """The parts of an answer; one that is no stream has one part."""
    answer = model.invoke("qwen-vl", credentials, *arguments, stream, "user")
    return list(answer)


@pytest.mark.parametrize("stream", [False, True])
def test_a_question_about_an_image(
    model: Model, credentials: dict[str, Any], base64_picture: str, stream: bool
) -> None:
    options = {"temperature": 0, "max_tokens": 32}
    parts = ask(model, credentials, asked(base64_picture), options, None, None, stream=stream)
    text = "".join(str(part.delta.message.content or "") for part in parts)
    assert "red circle" in text.lower()
    assert parts[-1].delta.usage.prompt_tokens > 0


@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_sent(model: Model, credentials: dict[str, Any], stream: bool) -> None:
    """Dify leaves it to the model whether it calls, and the demo model does not."""
    tool = PromptMessageTool(name="now", description="Tells the time.", parameters={})
    options = {"temperature": 0, "max_tokens": 64}
    question = [UserPromptMessage(content="What time is it?")]
    parts = ask(model, credentials, question, options, [tool], None, stream=stream)
    assert "".join(str(part.delta.message.content or "") for part in parts)
