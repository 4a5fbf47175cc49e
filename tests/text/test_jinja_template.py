"""Rendered and tokenised conversations against transformers' `apply_chat_template`."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from inference_service.domain import ChatMessage, ImagePart, Role, TextPart, Tool, VideoPart
from inference_service.errors import ContextLengthError, InvalidArgumentError
from inference_service.text import jinja_template as template_module
from inference_service.text.guard import SpecialTokenGuard
from inference_service.text.jinja_template import JinjaTemplate
from inference_service.text.tokenizer_json import JsonTokenizer
from tests.support.examples import one_in
from tests.support.qwen_text import QWEN3_VL, TEMPLATES, write_text_files


IMAGE = ImagePart(data=b"x")
VIDEO = VideoPart(frames=(IMAGE, IMAGE, IMAGE))


def say(role: str, *parts: str | ImagePart | VideoPart) -> ChatMessage:
    return ChatMessage(
        role=Role(role),
        parts=tuple(TextPart(text=part) if isinstance(part, str) else part for part in parts),
    )


def as_dicts(messages: list[ChatMessage]) -> list[dict[str, Any]]:
    """What a caller of transformers passes."""
    return [
        {
            "role": message.role.value,
            "content": [
                {"type": "text", "text": part.text}
                if isinstance(part, TextPart)
                else {"type": "image" if isinstance(part, ImagePart) else "video"}
                for part in message.parts
            ],
        }
        for message in messages
    ]


TEXTS = [
    "What is this?",
    "图片里有什么？",
    "👩‍👩‍👧 and é e\u0301",
    "  leading, trailing  ",
    "\n\nlines\n\n",
    "",
    "<b>&amp; {{ 7 * 7 }} {% raw %}",
    "<think>\nhm\n</think>\n\nyes",
    "<tool_response>x</tool_response>",
    "a < b",
]
CONVERSATIONS = {
    **{f"text {index}": [say("user", text)] for index, text in enumerate(TEXTS)},
    **{
        f"system {index}": [say("system", text), say("user", "x")]
        for index, text in enumerate(TEXTS)
    },
    **{
        f"turns {index}": [say("user", "one"), say("assistant", text), say("user", "two")]
        for index, text in enumerate(TEXTS)
    },
    "image before text": [say("user", IMAGE, "What is this?")],
    "image behind text": [say("user", "What is this?", IMAGE)],
    "image alone": [say("user", IMAGE)],
    "images": [say("user", "A", IMAGE, "B", IMAGE, IMAGE, " C")],
    "images in turns": [
        say("system", "Be brief."),
        say("user", IMAGE, "first"),
        say("assistant", "ok"),
        say("user", IMAGE, "second"),
    ],
    "video": [say("user", VIDEO, "What happens?")],
    "videos and images": [say("user", IMAGE, "图", VIDEO, VIDEO), say("assistant", "ok")],
    "texts in parts": [say("user", "one ", "word", "s")],
    "assistant last": [say("user", "x"), say("assistant", "It is")],
    "thinking last": [say("user", "x"), say("assistant", "<think>\nhm\n</think>\n\nIt is")],
    "system in the middle": [say("user", "x"), say("system", "y"), say("user", "z")],
}


def ours(directory, messages: list[ChatMessage], **options: Any) -> tuple[str, list[int]]:
    tokenizer = JsonTokenizer.from_dir(directory)
    guard = SpecialTokenGuard(tokenizer.special_tokens)
    rendered = JinjaTemplate.from_dir(directory).render(messages, **options)
    ids = []
    for text, special in guard.split(rendered):
        ids += [tokenizer.special_tokens[text]] if special else tokenizer.encode_plain(text)
    return rendered, ids


@pytest.mark.parametrize("name", one_in(4, CONVERSATIONS))
def test_as_transformers(text_dir, reference, name):
    messages = CONVERSATIONS[name]
    for opened, thinking in itertools.product((True, False), (None, True, False)):
        extra = {} if thinking is None else {"enable_thinking": thinking}
        wanted = reference.apply_chat_template(
            as_dicts(messages), tokenize=False, add_generation_prompt=opened, **extra
        )
        rendered, ids = ours(
            text_dir, messages, add_generation_prompt=opened, enable_thinking=thinking
        )
        assert rendered == wanted
        assert ids == reference.encode(wanted, add_special_tokens=False)


TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather <now> & later. 天气",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": ["北京", "Zürich"]}},
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "time", "parameters": {}}},
]


@pytest.mark.parametrize(
    "name", ["text 1", "system 1", "turns 8", "images", "images in turns", "video"]
)
@pytest.mark.parametrize("number", [1, 2])
def test_tools_as_transformers(text_dir, reference, name, number):
    messages = CONVERSATIONS[name]
    wanted = reference.apply_chat_template(
        as_dicts(messages), tools=TOOLS[:number], tokenize=False, add_generation_prompt=True
    )
    tools = [
        Tool(
            name=tool["function"]["name"],
            description=tool["function"].get("description", ""),
            parameters=json.dumps(tool["function"]["parameters"]),
        )
        for tool in TOOLS[:number]
    ]
    rendered, ids = ours(text_dir, messages, tools=tools)
    assert rendered == wanted
    assert ids == reference.encode(wanted, add_special_tokens=False)


@pytest.mark.parametrize("text", ["It is", "It is ", "", "图", "a\n", "CONTINUE"])
def test_continued_as_transformers(text_dir, reference, text):
    messages = [say("user", IMAGE, "x"), say("assistant", text)]
    wanted = reference.apply_chat_template(
        as_dicts(messages), tokenize=False, continue_final_message=True
    )
    got, _ = ours(text_dir, messages, add_generation_prompt=False, continue_final_message=True)
    assert got == wanted
    assert got.endswith(text)


def test_nothing_to_continue():
    template = JinjaTemplate(QWEN3_VL)
    for messages, opened in (([say("user", IMAGE)], False), ([say("user", "x")], True)):
        with pytest.raises(InvalidArgumentError):
            template.render(messages, add_generation_prompt=opened, continue_final_message=True)
    with pytest.raises(InvalidArgumentError):
        JinjaTemplate("x").render(
            [say("user", "x")], add_generation_prompt=False, continue_final_message=True
        )


@pytest.mark.parametrize("kind", ["jinja", "json", "config"])
def test_places_of_the_template(tmp_path, kind):
    write_text_files(tmp_path, TEMPLATES["qwen2_vl"] + "{{ eos_token }}{{ pad_token }}", kind=kind)
    rendered = JinjaTemplate.from_dir(tmp_path).render([say("user", "x")])
    assert rendered.endswith("assistant\n<|im_end|><|endoftext|>")


def test_unsuitable_templates(tmp_path):
    with pytest.raises(ValueError, match="no chat template"):
        JinjaTemplate.from_dir(tmp_path)
    (tmp_path / "chat_template.json").write_text("{")
    with pytest.raises(ValueError, match=r"not valid JSON: .* line 1, column 2"):
        JinjaTemplate.from_dir(tmp_path)
    with pytest.raises(ValueError, match="malformed"):
        JinjaTemplate("{% if %}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no: ' + messages[0].content) }}",
        "{{ messages[0].nothing.more }}",
        "{{ 1 / 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ range(10**9) | list }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    ],
)
def test_refusals_are_the_callers_error_and_say_nothing(source):
    with pytest.raises(InvalidArgumentError) as caught:
        JinjaTemplate(source).render([say("user", "secret")])
    assert "secret" not in caught.value.message


def test_a_template_that_does_not_end(monkeypatch):
    monkeypatch.setattr(template_module, "MAX_CHARACTERS", 1000)
    source = "{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}"
    with pytest.raises(ContextLengthError):
        JinjaTemplate(source).render([say("user", "x")])


def test_what_templates_may_use():
    source = (
        "{% generation %}{{ [1, '<é>'] | tojson }}{% endgeneration %}"
        "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
        "{{ strftime_now('%Y') | length }}{{ dict(a=1) | tojson(indent=None, sort_keys=True) }}"
    )
    assert JinjaTemplate(source).render([]) == '[1, "<é>"]014{"a": 1}'
