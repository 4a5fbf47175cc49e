"""Whatever a chat template would leave out is moved to where it is rendered, or refused: never dropped."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
import tracemalloc

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
import pytest

from inference_service.domain import ChatMessage, ChatRequest, ImagePart, Part, Role, TextPart
from inference_service.errors import ServiceError, UnsupportedParameterError
from inference_service.families.registry import load_spec
from inference_service.text.jinja_chat import JinjaChat
from inference_service.text.jinja_template import JinjaTemplate
from inference_service.text.template_check import TemplateCheck
from inference_service.text.tokenizer_json import JsonTokenizer
from tests.support.qwen_text import QWEN2_VL, QWEN3_VL, token_id, tokenizer_json


EACH = "{%% for m in messages %%}%s{%% endfor %%}"
DEMO = Path("inference_service/demo/model")
IMAGE_OF_PARTS = "{% for p in m.content %}{{ p.text or '<|image_pad|>' }}{% endfor %}"
ANY = "{% if m.content is string %}{{ m.content }}{% else %}" + IMAGE_OF_PARTS + "{% endif %}"
TEMPLATES = {
    "qwen2_vl": QWEN2_VL,
    "qwen3_vl": QWEN3_VL,
    "demo": json.loads((DEMO / "tokenizer_config.json").read_text())["chat_template"],
    "everything": EACH % (ANY + "\n"),
    "parts only": EACH % IMAGE_OF_PARTS,
    "text only": EACH % "{{ m.role }}: {{ m.content }}\n",
    "user and assistant": EACH % ("{% if m.role != 'system' %}" + ANY + "{% endif %}"),
    "first message": "{% set m = messages[0] %}" + ANY,
    "strict system": "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning.') }}{% endif %}"
    + ANY
    + "{% endfor %}",
    "alternating": "{% for m in messages %}{% if m.role == 'user' and loop.index is even %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}" + ANY + "{% endfor %}",
    "not empty": EACH % ("{% if m.content %}" + ANY + "{% endif %}"),
    "trims": EACH % "{{ (m.content if m.content is string else '<|image_pad|>') | trim | upper }}",
}


@pytest.fixture(scope="module")
def tokenizer() -> JsonTokenizer:
    return JsonTokenizer(tokenizer_json())


@pytest.fixture(scope="module")
def chats(tokenizer: JsonTokenizer) -> dict[str, JinjaChat]:
    return {
        name: JinjaChat(tokenizer, JinjaTemplate(source), placeholder=token_id("<|image_pad|>"))
        for name, source in TEMPLATES.items()
    }


def say(role: str, *parts: str | ImagePart, name: str = "") -> ChatMessage:
    content = tuple(TextPart(text=part) if isinstance(part, str) else part for part in parts)
    return ChatMessage(role=Role(role), parts=content, name=name)


def written(chat: JinjaChat, tokenizer: JsonTokenizer, *messages: ChatMessage) -> str:
    request = ChatRequest(request_id="r", model="m", messages=messages)
    return tokenizer.decode(chat.write(request).token_ids, skip_special_tokens=False)


def refused(chat: JinjaChat, *messages: ChatMessage) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        chat.write(ChatRequest(request_id="r", model="m", messages=messages))
    return caught.value


IMAGE = ImagePart(data=b"x")
TURNS: st.SearchStrategy[list[tuple[str, list[bool]]]] = st.lists(
    st.tuples(
        st.sampled_from(["system", "user", "assistant"]), st.lists(st.booleans(), max_size=3)
    ),
    min_size=1,
    max_size=6,
)


def check_refusal(error: ServiceError) -> None:
    assert error.reason in ("UNSUPPORTED_PARAMETER", "INVALID_ARGUMENT")
    assert error.field.startswith("spec.messages")
    assert "730" not in error.message


@pytest.mark.parametrize("template", TEMPLATES)
@hypothesis_settings(deadline=None, max_examples=60)
@given(turns=TURNS)
def test_nothing_is_lost(
    chats: dict[str, JinjaChat],
    tokenizer: JsonTokenizer,
    template: str,
    turns: list[tuple[str, list[bool]]],
) -> None:
    """Every text and every image of a conversation is in the prompt, or the request is refused with a field."""
    numbers = itertools.count(100)
    messages = []
    for role, kinds in turns:
        parts: list[Part] = [
            IMAGE if is_image and role != "system" else TextPart(text=f"T{next(numbers)}")
            for is_image in kinds
        ]
        messages.append(ChatMessage(role=Role(role), parts=tuple(parts) or (TextPart(text=""),)))
    try:
        text = written(chats[template], tokenizer, *messages)
    except ServiceError as error:
        check_refusal(error)
        return
    sent = [part for message in messages for part in message.parts]
    assert text.count("<|image_pad|>") == sum(isinstance(part, ImagePart) for part in sent)
    for part in sent:
        assert not isinstance(part, TextPart) or part.text in text


@pytest.mark.parametrize("template", ["demo", "strict system"])
def test_a_late_system_message_is_moved_to_the_front(
    chats: dict[str, JinjaChat], tokenizer: JsonTokenizer, template: str
) -> None:
    chat = chats[template]
    both = written(chat, tokenizer, say("system", "A\n\nB"), say("user", "x"))
    first, late = say("system", "A"), say("system", "B")
    for messages in ((first, late, say("user", "x")), (first, say("user", "x"), late)):
        assert written(chat, tokenizer, *messages) == both
    assert written(chat, tokenizer, say("user", "x"), late) == written(
        chat, tokenizer, late, say("user", "x")
    )


@pytest.mark.parametrize("template", ["qwen2_vl", "qwen3_vl"])
def test_a_late_system_message_stays_where_the_template_renders_it(
    chats: dict[str, JinjaChat], tokenizer: JsonTokenizer, template: str
) -> None:
    text = written(chats[template], tokenizer, say("user", "x"), say("system", "B"))
    assert text.index("user\nx") < text.index("system\nB")


def test_images_that_the_template_drops_are_refused(chats: dict[str, JinjaChat]) -> None:
    error = refused(chats["demo"], say("user", "x"), say("assistant", "y", IMAGE), say("user", "z"))
    assert error.field == "spec.messages[1].parts[1].image"
    assert "images in assistant messages: send images in a user message" in error.message
    error = refused(chats["text only"], say("user", "x", IMAGE))
    assert error.field == "spec.messages[0].parts[1].image"


def test_text_that_the_template_drops_is_refused(chats: dict[str, JinjaChat]) -> None:
    error = refused(chats["user and assistant"], say("user", "x"), say("system", "y"))
    assert error.field == "spec.messages[1]"
    assert "leaves out this system message: write it into a user message" in error.message
    error = refused(chats["first message"], say("user", "x"), say("assistant", "y"))
    assert error.field == "spec.messages[1]"


def test_text_is_sent_in_parts_where_only_parts_are_rendered(
    chats: dict[str, JinjaChat], tokenizer: JsonTokenizer
) -> None:
    assert written(chats["parts only"], tokenizer, say("user", "one ", "two")) == "one two"


def test_a_refusal_quotes_the_template_but_not_the_messages(chats: dict[str, JinjaChat]) -> None:
    error = refused(chats["alternating"], say("user", "secret"), say("user", "secret"))
    assert "it says 'Roles must alternate'" in error.message
    assert "secret" not in error.message


def test_a_conversation_is_checked_as_it_is_rendered(tokenizer: JsonTokenizer) -> None:
    """A template may refuse to open an answer behind an answer, and still continue that answer."""
    template = EACH % "{{ m.role }}:{{ m.content }}\\n" + (
        "{% if add_generation_prompt and messages[-1].role == 'assistant' %}"
        "{{ raise_exception('The last message must be of the user') }}{% endif %}"
    )
    chat = JinjaChat(tokenizer, JinjaTemplate(template), placeholder=token_id("<|image_pad|>"))
    messages = (say("user", "x"), say("assistant", "It is"))
    request = ChatRequest(
        request_id="r",
        model="m",
        messages=messages,
        add_generation_prompt=False,
        continue_final_message=True,
    )
    text = tokenizer.decode(chat.write(request).token_ids, skip_special_tokens=False)
    assert text.endswith("assistant:It is")
    assert "it says 'The last message" in refused(chat, *messages).message


NAMED = {
    EACH % "{{ m.role }}{{ m.name }}{{ m.content }}": "system user assistant",
    EACH % "{{ m.content }}{% if m.role == 'user' %}{{ m.name }}{% endif %}": "user",
    EACH % "{{ m.content }}{% if m.name %}named{% endif %}": "",
    QWEN2_VL: "",
    QWEN3_VL: "",
}


def turns_of(role: str, *named: tuple[str, str]) -> list[ChatMessage]:
    """A conversation with named messages of a role, as (name, text), and one without a name of the other roles."""
    messages = [say(role, text, name=name) for name, text in named]
    if role == "user":
        return messages
    answered = [turn for message in messages for turn in (message, say("user", "next"))]
    return answered if role == "system" else [say("user", "first"), *answered]


@pytest.mark.parametrize(("template", "roles"), NAMED.items())
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_names_that_tell_participants_apart_are_rendered(
    tokenizer: JsonTokenizer, template: str, roles: str, role: str
) -> None:
    """AutoGen names every message; a name that all share, or that repeats the role, tells nothing."""
    chat = JinjaChat(tokenizer, JinjaTemplate(template), placeholder=token_id("<|image_pad|>"))
    by_template = role in roles.split()

    def prompt(*named: tuple[str, str]) -> str:
        return written(chat, tokenizer, *turns_of(role, *named))

    two = prompt(("Ann", "I am one."), ("Bob", "I am two."))
    assert "Ann" in two
    assert "Bob" in two
    one = prompt(("Ann", "I am one."), ("Ann", "I am two."))
    assert ("Ann" in one) is by_template
    assert "I am two." in one
    if not by_template:
        assert "Ann: I am one." in two
        assert "Bob: I am two." in two
        assert one == prompt(("", "I am one."), (role, "I am two."))
        assert "Ann: I am two." in prompt(("", "I am one."), ("Ann", "I am two."))


def test_a_name_stands_before_the_image_of_its_message(tokenizer: JsonTokenizer) -> None:
    chat = JinjaChat(tokenizer, JinjaTemplate(QWEN2_VL), placeholder=token_id("<|image_pad|>"))
    messages = [say("user", ImagePart(), name="Ann"), say("user", ImagePart(), "x", name="Bob")]
    prompt = written(chat, tokenizer, *messages)
    assert "Ann: <|vision_start|><|image_pad|>" in prompt
    assert "Bob: <|vision_start|><|image_pad|><|vision_end|>x" in prompt


def test_an_error_names_the_part_of_a_message_with_a_name(tokenizer: JsonTokenizer) -> None:
    texts = "{% for p in m.content if p.text %}{{ p.text }}{% endfor %}"
    source = (
        EACH
        % f"{{% if m.role == 'user' or m.content is string %}}{ANY}{{% else %}}{texts}{{% endif %}}"
    )
    chat = JinjaChat(tokenizer, JinjaTemplate(source), placeholder=token_id("<|image_pad|>"))
    image = ImagePart(field="spec.messages[1].parts[0].image")
    messages = [say("user", "x"), say("assistant", image, name="Ann"), say("assistant", "y")]
    assert refused(chat, *messages).field == image.field


def test_system_messages_with_different_names_are_merged(tokenizer: JsonTokenizer) -> None:
    template = "{{ messages[0].name }}{{ messages[0].content }}{% for m in messages[1:] if m.role == 'user' %}"
    template += "{{ m.content }}{% endfor %}"
    chat = JinjaChat(tokenizer, JinjaTemplate(template), placeholder=token_id("<|image_pad|>"))
    messages = [say("system", "a", name="Ann"), say("user", "x"), say("system", "b", name="Bob")]
    assert written(chat, tokenizer, *messages) == "Ann: a\n\nBob: bx"


@pytest.mark.parametrize(
    ("template", "wanted", "accepted"),
    [
        (QWEN3_VL, True, True),
        (QWEN3_VL, False, True),
        (QWEN2_VL, False, True),
        (QWEN2_VL, True, False),
        (EACH % "{{ m.content }}" + "<think>\n", True, True),
        (EACH % "{{ m.content }}" + "<think>\n", False, False),
    ],
)
def test_thinking_that_the_template_cannot_switch_is_refused(
    tokenizer: JsonTokenizer, template: str, wanted: bool, accepted: bool
) -> None:
    chat = JinjaChat(tokenizer, JinjaTemplate(template), placeholder=token_id("<|image_pad|>"))
    request = ChatRequest(
        request_id="r", model="m", messages=(say("user", "x"),), enable_thinking=wanted
    )
    if accepted:
        assert chat.write(request).token_ids
        return
    with pytest.raises(UnsupportedParameterError) as caught:
        chat.write(request)
    assert caught.value.field == "spec.template.enable_thinking"


def test_the_demo_model_has_the_template_of_its_family() -> None:
    """The template above is the one that is served."""
    assert load_spec(DEMO).family == "qwen3_vl"


def test_what_is_kept_of_conversations_needs_little_memory(tokenizer: JsonTokenizer) -> None:
    """Not the white space of texts, and nothing of conversations with thousands of messages."""
    template = JinjaTemplate(TEMPLATES["everything"])
    check = TemplateCheck(template, image="<|image_pad|>", video=None)
    tracemalloc.start()
    try:
        for size in range(200):
            assert check.left_out([say("user", "x", " " * (100_000 + size))]) is None
        for size in range(20):
            many = [say("user", "x")] * (5000 + size)
            assert check.left_out(many) is None
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2**21
