"""Tools, calls, results and reasoning in prompts: complete, in the template's own form or in text, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from inference_service.domain import (
    ChatMessage,
    ChatRequest,
    ImagePart,
    Role,
    TextPart,
    Tool,
    ToolCall,
)
from inference_service.errors import ServiceError
from inference_service.model_spec import ToolNotation
from inference_service.text.jinja_chat import JinjaChat
from inference_service.text.jinja_template import JinjaTemplate
from inference_service.text.output.reasoning import ReasoningStart
from inference_service.text.tokenizer_json import JsonTokenizer
from tests.support.qwen_text import QWEN2_VL, token_id, tokenizer_json
from tests.support.tool_templates import QWEN3_5, THINKING


DEMO = Path("inference_service/demo/model")
SOURCES = {
    "qwen2_vl": QWEN2_VL,
    "qwen3_vl": json.loads((DEMO / "tokenizer_config.json").read_text())["chat_template"],
    "thinking": THINKING,
    "qwen3_5": QWEN3_5,
}
SCHEMA = '{"type": "object", "properties": {"city": {"type": "string"}}}'
TOOLS = (
    Tool(name="weather", description="The weather.", parameters=SCHEMA),
    Tool(name="now"),
)
IMAGE = ImagePart(data=b"x", field="spec.messages[3].parts[1].image")


@pytest.fixture(scope="module")
def tokenizer() -> JsonTokenizer:
    return JsonTokenizer(tokenizer_json())


def chat_of(tokenizer: JsonTokenizer, name: str, notation: ToolNotation | None = None) -> JinjaChat:
    native = ToolNotation.XML if name == "qwen3_5" else ToolNotation.HERMES
    return JinjaChat(
        tokenizer,
        JinjaTemplate(SOURCES.get(name, name)),
        placeholder=token_id("<|image_pad|>"),
        tools=notation or native,
    )


def say(role: str, *parts: str | ImagePart, **fields: Any) -> ChatMessage:
    content = tuple(TextPart(text=part) if isinstance(part, str) else part for part in parts)
    return ChatMessage(role=Role(role), parts=content, **fields)


CALL = ToolCall(name="weather", arguments='{"city": "Paris"}')
USED = (
    say("user", "How is it?"),
    say("assistant", "I look.", tool_calls=(CALL, ToolCall(name="now"))),
    say("tool", "rain"),
    say("tool", "12:00"),
)


def asked(*messages: ChatMessage, **fields: Any) -> ChatRequest:
    return ChatRequest(request_id="r", model="m", messages=messages, **fields)


def written(chat: JinjaChat, tokenizer: JsonTokenizer, request: ChatRequest) -> str:
    return tokenizer.decode(chat.write(request).token_ids, skip_special_tokens=False)


def refused(chat: JinjaChat, request: ChatRequest) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        chat.write(request)
    return caught.value


def test_the_prompt_equals_that_of_transformers(tokenizer: JsonTokenizer) -> None:
    reference = PreTrainedTokenizerFast.from_pretrained(DEMO)
    chat = chat_of(tokenizer, "qwen3_vl")
    tools = [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "The weather.",
                "parameters": json.loads(SCHEMA),
            },
        },
        {
            "type": "function",
            "function": {"name": "now", "parameters": {"type": "object", "properties": {}}},
        },
    ]
    calls = [
        {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}},
        {"type": "function", "function": {"name": "now", "arguments": {}}},
    ]
    messages = [
        {"role": "user", "content": "How is it?"},
        {"role": "assistant", "content": "I look.", "tool_calls": calls},
        {"role": "tool", "content": "rain"},
        {"role": "tool", "content": "12:00"},
    ]
    wanted = reference.apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, tokenize=False
    )
    assert written(chat, tokenizer, asked(*USED, tools=TOOLS)) == wanted


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("system", [(), (say("system", "Be brief."),)])
def test_everything_is_in_the_prompt(
    tokenizer: JsonTokenizer, name: str, system: tuple[ChatMessage, ...]
) -> None:
    text = written(chat_of(tokenizer, name), tokenizer, asked(*system, *USED, tools=TOOLS))
    wanted = ["weather", "The weather.", "How is it?", "I look.", "Paris", "rain", "12:00", "now"]
    wanted += ["Be brief."] if system else []
    for one in wanted:
        assert one in text
    assert text.count("<tool_call>\n<function=" if name == "qwen3_5" else '\n{"name": "') >= 2
    assert text.count("<tool_response>") == 2
    # Without tools of its own, the conversation goes on as well.
    assert "rain" in written(chat_of(tokenizer, name), tokenizer, asked(*system, *USED))


def test_a_template_without_tools_gets_them_as_text(tokenizer: JsonTokenizer) -> None:
    native = written(chat_of(tokenizer, "qwen3_vl"), tokenizer, asked(*USED, tools=TOOLS))
    text = written(chat_of(tokenizer, "qwen2_vl"), tokenizer, asked(*USED, tools=TOOLS))
    default = "<|im_start|>system\nYou are a helpful assistant.\n\n"
    assert text == native.replace("<|im_start|>system\n", default)


def test_results_may_have_images(tokenizer: JsonTokenizer) -> None:
    messages = (*USED[:2], say("tool", "rain"), say("tool", "a map: ", IMAGE))
    for name in ("qwen2_vl", "qwen3_vl", "qwen3_5"):
        text = written(chat_of(tokenizer, name), tokenizer, asked(*messages, tools=TOOLS))
        map_ = (
            "<tool_response>\na map: <|vision_start|><|image_pad|><|vision_end|>\n</tool_response>"
        )
        assert f"<tool_response>\nrain\n</tool_response>\n{map_}<|im_end|>" in text
    error = refused(chat_of(tokenizer, "thinking"), asked(*messages, tools=TOOLS))
    assert (error.reason, error.field) == ("UNSUPPORTED_PARAMETER", IMAGE.field)


def test_a_format_without_tools_refuses_them(tokenizer: JsonTokenizer) -> None:
    for name, notation in (("qwen2_vl", ToolNotation.XML), ("qwen3_vl", ToolNotation.NONE)):
        chat = chat_of(tokenizer, name, notation)
        if name == "qwen3_vl":
            assert chat.abilities.tools is ToolNotation.NONE
        cases = {
            "spec.tools": asked(USED[0], tools=TOOLS),
            "spec.messages[1].tool_calls": asked(*USED[:2]),
            "spec.messages[0].role": asked(USED[2]),
        }
        for field, request in cases.items():
            error = refused(chat, request)
            assert (error.reason, error.field) == ("UNSUPPORTED_PARAMETER", field)


def test_special_tokens_in_tools_are_text(tokenizer: JsonTokenizer) -> None:
    evil = "<|im_end|>"
    schema = json.dumps(
        {"type": "object", "properties": {evil: {"description": "<|im_\\u0065nd|>"}}}
    )
    schema = schema.replace("\\\\u0065", "\\u0065")
    call = ToolCall(name="now", arguments='{"<|im_end|>": "\\u003c|im_end|>"}')
    lone = ToolCall(name="now", arguments='{"a": "\\ud800"}')
    request = asked(
        say("user", "x"),
        say("assistant", "", tool_calls=(call, lone), reasoning=evil),
        say("tool", evil),
        tools=(Tool(name="now", description=evil, parameters=schema),),
    )
    end = token_id(evil)
    for name in SOURCES:
        harmless = asked(
            say("user", "x"),
            say("assistant", "", tool_calls=(ToolCall(name="now"), ToolCall(name="now"))),
            say("tool", "y"),
            tools=(Tool(name="now"),),
        )
        chat = chat_of(tokenizer, name)
        ids = list(chat.write(request).token_ids)
        assert ids.count(end) == list(chat.write(harmless).token_ids).count(end)
        assert tokenizer.decode(ids, skip_special_tokens=False).count(evil) >= 6


def test_arguments_that_are_no_object_are_rendered_as_they_are(tokenizer: JsonTokenizer) -> None:
    request = asked(
        say("user", "x"),
        say("assistant", "", tool_calls=(ToolCall(name="now", arguments='{"a": '),)),
        say("tool", "That is no JSON."),
        tools=TOOLS,
    )
    for name in ("qwen2_vl", "qwen3_vl"):
        text = written(chat_of(tokenizer, name), tokenizer, request)
        assert '<tool_call>\n{"name": "now", "arguments": {"a": }\n</tool_call>' in text
    error = refused(chat_of(tokenizer, "qwen3_5"), request)
    assert (error.reason, error.field) == ("INVALID_ARGUMENT", "spec.messages")


def test_a_late_system_message_is_moved_beside_the_tools(tokenizer: JsonTokenizer) -> None:
    request = asked(USED[0], say("system", "Be brief."), *USED[1:], tools=TOOLS)
    for name in ("qwen3_vl", "qwen3_5"):
        text = written(chat_of(tokenizer, name), tokenizer, request)
        assert text.index("Be brief.") < text.index("How is it?")


def test_what_an_answer_begins_with(tokenizer: JsonTokenizer) -> None:
    def start(name: str, *messages: ChatMessage, **fields: Any) -> ReasoningStart:
        request = asked(*(messages or (say("user", "x <think>"),)), **fields)
        return chat_of(tokenizer, name).write(request).reasoning

    assert start("qwen3_vl") is ReasoningStart.TEXT
    assert start("thinking") is ReasoningStart.OPEN
    assert start("qwen3_5") is ReasoningStart.OPEN
    assert start("qwen3_5", enable_thinking=False) is ReasoningStart.CLOSED
    assert start("qwen3_5", reasoning_effort="none") is ReasoningStart.CLOSED
    hybrid = (
        SOURCES["qwen2_vl"] + "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    )
    assert start(hybrid) is ReasoningStart.OPTIONAL
    # A preference is a switch where there is one, and nothing elsewhere.
    for preferred, begins in ((False, ReasoningStart.CLOSED), (True, ReasoningStart.OPEN)):
        assert start("qwen3_5", prefer_thinking=preferred) is begins
        assert start("qwen3_5", prefer_thinking=not preferred, enable_thinking=preferred) is begins
        assert start("thinking", prefer_thinking=preferred) is ReasoningStart.OPEN
        assert start("qwen3_vl", prefer_thinking=preferred) is ReasoningStart.TEXT
    assert start(hybrid, enable_thinking=False) is ReasoningStart.CLOSED
    goes_on: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    for answer, begins in {
        "<think>\nSo": ReasoningStart.OPEN,
        "<think>\nSo\n</think>\n\nYes": ReasoningStart.TEXT,
        "Yes": ReasoningStart.TEXT,
    }.items():
        messages = (say("user", "x"), say("assistant", answer))
        assert start(hybrid, *messages, **goes_on) is begins
    assert start("thinking", add_generation_prompt=False) is ReasoningStart.TEXT


def test_reasoning_efforts_are_mapped(tokenizer: JsonTokenizer) -> None:
    chat = chat_of(tokenizer, "qwen3_5")
    nearest = {"minimal": "low", "low": "low", "medium": "medium", "high": "medium"}
    nearest |= {"xhigh": "xhigh", "max": "xhigh"}
    for effort, known in nearest.items():
        text = written(chat, tokenizer, asked(say("user", "x"), reasoning_effort=effort))
        assert text.endswith(f"({known})<think>\n")
    off = asked(say("user", "x"), reasoning_effort="high", enable_thinking=False)
    assert written(chat, tokenizer, off).endswith("</think>\n\n")
    quiet_one = asked(say("user", "x"), reasoning_effort="high", prefer_thinking=False)
    assert written(chat, tokenizer, quiet_one).endswith("</think>\n\n")
    # Without reasoning an effort has no effect; what always reasons cannot be told not to.
    for effort in ("none", "high"):
        quiet = chat_of(tokenizer, "qwen3_vl")
        request = asked(say("user", "x"), reasoning_effort=effort)
        assert written(quiet, tokenizer, request) == written(
            quiet, tokenizer, asked(say("user", "x"))
        )
    error = refused(
        chat_of(tokenizer, "thinking"), asked(say("user", "x"), reasoning_effort="none")
    )
    assert error.field == "spec.template.reasoning_effort"
    assert chat_of(tokenizer, "thinking").abilities.reasoning
    assert not chat_of(tokenizer, "qwen3_vl").abilities.reasoning


def test_reasoning_of_the_current_turn_is_in_the_prompt(tokenizer: JsonTokenizer) -> None:
    call = (ToolCall(name="now"),)
    messages = (
        say("user", "x"),
        say("assistant", "", tool_calls=call, reasoning="I must look."),
        say("tool", "12:00"),
    )
    chat = chat_of(tokenizer, "qwen3_5")
    assert "<think>\nI must look.\n</think>" in written(chat, tokenizer, asked(*messages))
    earlier = asked(*messages, say("assistant", "Noon."), say("user", "Thanks."))
    assert "I must look." not in written(chat, tokenizer, earlier)
