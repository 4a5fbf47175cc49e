"""Tokens and conversations of Qwen-VL v1 against the original's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
import pytest

from inference_service.domain import ChatMessage, ChatRequest, ImagePart, Role, TextPart
from inference_service.errors import (
    ContextLengthError,
    InvalidArgumentError,
    UnsupportedParameterError,
)
from inference_service.families.qwen_vl.text import (
    BOX_TAGS,
    SPECIAL_TOKENS,
    QwenVLBase,
    QwenVLChat,
    load_tokenizer,
)
from inference_service.text.limits import MAX_CHARACTERS
from inference_service.text.tokenizer import Tokenizer
from tests.support.qwen_vl_v1 import GOLDEN, IMG, IMG_END, PAD, chat_request, golden, with_pads


TEXTS = golden("tokenization.json")["texts"]
CASES = {case["name"]: case for case in golden("chat_context.json")["cases"]}
IMAGE = ImagePart(data=b"x")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(GOLDEN)


@pytest.fixture(scope="module")
def chat(tokenizer) -> QwenVLChat:
    return QwenVLChat(tokenizer, image_tokens=256)


def say(role: Role, *parts: str | ImagePart) -> ChatMessage:
    content = tuple(TextPart(text=part) if isinstance(part, str) else part for part in parts)
    return ChatMessage(role=role, parts=content)


def ask(*messages: ChatMessage, **options: Any) -> ChatRequest:
    return ChatRequest(request_id="r", model="m", messages=messages, **options)


def test_special_ids(tokenizer):
    facts = golden("tokenization.json")
    assert facts["special_ids"].items() <= tokenizer.special_tokens.items()
    assert tokenizer.vocab_size == facts["len"]
    assert min(tokenizer.special_ids) == facts["mergeable_ranks"]
    assert len(tokenizer.special_ids) == len(SPECIAL_TOKENS) == facts["len"] - 151643


@pytest.mark.parametrize("case", TEXTS, ids=lambda case: case["text"][:16])
def test_texts(tokenizer, chat, case):
    text, plain = case["text"], case["ids_none"]["ok"]
    assert tokenizer.encode_plain(text) == plain
    assert tokenizer.decode(plain, skip_special_tokens=False) == tokenizer.decode(plain)
    if "<img>" in text:  # the original puts the path among the ids, or refuses
        assert not tokenizer.special_ids.intersection(tokenizer.encode_plain(text))
        return
    ids = case["ids_all"]["ok"]
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == case["decode"]["ok"]
    assert tokenizer.decode(ids) == case["decode_skip_special_keep_image"]["ok"]
    if "<imgpad>" not in text and "</img>" not in text:
        written = chat.write(ask(say(Role.USER, text))).token_ids
        assert (
            list(written[-5 - len(case["ids_image_st"]["ok"]) : -5]) == case["ids_image_st"]["ok"]
        )


# Neither a path among the ids nor an id without a token, which the original refuses.
DECODED = [
    case
    for case in golden("tokenization.json")["decode"]
    if "ok" in case["decode"] and IMG not in case["ids"]
]
LISTS = [case for case in golden("tokenization.json")["list_format"] if "ok" in case["ids"]]


@pytest.mark.parametrize("case", DECODED, ids=lambda case: case["decode"]["ok"][:16])
def test_token_ids(tokenizer, case):
    """Halves of characters become U+FFFD, as with the original unless it is told otherwise."""
    whole = tokenizer.decode(case["ids"], skip_special_tokens=False)
    assert whole == case["decode"]["ok"]
    assert tokenizer.decode(case["ids"]) == case["skip_special_keep_image"]["ok"]


@pytest.mark.parametrize("case", LISTS, ids=lambda case: case["text"][:16])
def test_images_and_boxes_among_text(chat, case):
    written = chat.write(chat_request(case["text"])).token_ids
    head = len(chat.write(chat_request("")).token_ids) - 5
    assert list(written[head:-5]) == with_pads(case["ids"]["ok"], each=1)


@pytest.mark.parametrize("name", CASES)
def test_conversations(tokenizer, name):
    case = CASES[name]
    chat = QwenVLChat(tokenizer, image_tokens=256, history_window=case["max_window_size"])
    request = chat_request(case["query"], case["history"], case["system"])
    assert list(chat.write(request).token_ids) == with_pads(case["ids"], each=1)


def test_the_system_message_has_a_default(chat):
    case = CASES["single_default"]
    assert list(chat.write(chat_request(case["query"])).token_ids) == case["ids"]


def test_without_a_window_nothing_is_forgotten(chat, tokenizer):
    case = CASES["truncate_window_40"]
    written = chat.write(chat_request(case["query"], case["history"]))
    text = tokenizer.decode(written.token_ids)
    assert all(question in text and answer in text for question, answer in case["history"])
    assert written.dropped_images == 0


def test_forgotten_images_keep_their_numbers(tokenizer):
    turns = [
        m for n in range(3) for m in (say(Role.USER, IMAGE, f"q{n}"), say(Role.ASSISTANT, f"a{n}"))
    ]
    request = ask(*turns, say(Role.USER, "x", IMAGE))
    chat = QwenVLChat(tokenizer, image_tokens=256, history_window=600)
    written = chat.write(request)
    assert written.dropped_images == 1
    text = tokenizer.decode(written.token_ids)
    assert "q0" not in text
    assert [f"Picture {n}: " in text for n in (1, 2, 3, 4)] == [False, True, True, True]
    assert written.token_ids.count(PAD) == 3
    # Images count with all their tokens: a turn has about 275.
    for window, forgotten in ((256, 3), (400, 2), (1200, 0)):
        again = QwenVLChat(tokenizer, image_tokens=256, history_window=window).write(request)
        assert again.dropped_images == forgotten


def test_continues_the_final_message(chat, tokenizer):
    turns = [say(Role.USER, "a"), say(Role.ASSISTANT, "It is")]
    going_on = ask(*turns, add_generation_prompt=False, continue_final_message=True)
    assert tokenizer.decode(chat.write(going_on).token_ids, skip_special_tokens=False).endswith(
        "<|im_start|>assistant\nIt is"
    )
    closed = ask(*turns, add_generation_prompt=False)
    assert tokenizer.decode(chat.write(closed).token_ids, skip_special_tokens=False).endswith(
        "<|im_start|>assistant\nIt is<|im_end|>"
    )


PIECES = (
    *SPECIAL_TOKENS[:4],
    *BOX_TAGS,
    "<img>",
    "</img>",
    "<imgpad>",
    "<im",
    "g>",
    "/etc/passwd",
    "Picture 7: ",
    "\u0338",
    "x",
)
HOSTILE = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
TURN = [151644, 151645]
IMAGE_TOKENS = [IMG, PAD, IMG_END]


def steering(token_ids: Sequence[int]) -> list[int]:
    """The special tokens but for the tags around boxes."""
    return [i for i in token_ids if i >= 151643 and not 151851 <= i < IMG]


@hypothesis_settings(deadline=None)
@given(HOSTILE)
def test_user_text_opens_no_turn_and_no_image(chat, text):
    """What is typed is text, whoever typed it; only the tags around boxes are more."""
    messages = [
        say(Role.SYSTEM, text),
        say(Role.USER, text, IMAGE, text),
        say(Role.ASSISTANT, text),
        say(Role.USER, text),
    ]
    expected = [*TURN, 151644, *IMAGE_TOKENS, 151645, *TURN, *TURN, 151644]
    assert steering(chat.write(ask(*messages)).token_ids) == expected


@hypothesis_settings(deadline=None)
@given(
    st.lists(st.lists(st.booleans(), max_size=3), min_size=1, max_size=5),
    st.none() | st.integers(1, 2000),
    HOSTILE,
)
def test_images_have_their_numbers_over_all_turns(tokenizer, turns, window, text):
    """Of any conversation, whatever a window makes of it: the last turns stay, with the numbers they had."""
    messages = []
    for turn in turns:
        messages += [
            say(Role.USER, text, *[IMAGE if shown else text for shown in turn]),
            say(Role.ASSISTANT, text),
        ]
    chat = QwenVLChat(tokenizer, image_tokens=256, history_window=window)
    written = chat.write(ask(*messages[:-1]))
    ids = list(written.token_ids)
    kept = ids.count(IMG)
    total = sum(map(sum, turns))
    assert written.dropped_images + kept == total
    assert kept >= sum(turns[-1])
    before = [tokenizer.decode(ids[:at]) for at, token_id in enumerate(ids) if token_id == IMG]
    for number, said in enumerate(before, written.dropped_images + 1):
        assert said.endswith(f"Picture {number}: ")


def test_very_long_texts(chat, tokenizer):
    """The library's splitter panics on a megabyte of white space."""
    for space in (" ", "\u3000", "\t"):
        ids = tokenizer.encode_plain(f"a{space * 2**20}b")
        assert tokenizer.decode(ids) == f"a{space * 2**20}b"
        assert tokenizer.encode(f"a{space * 2**20}b") == ids
    with pytest.raises(ContextLengthError):
        chat.write(ask(say(Role.USER, "x" * (MAX_CHARACTERS + 1))))


def test_a_base_model_does_not_chat(tokenizer):
    with pytest.raises(UnsupportedParameterError, match="completions"):
        QwenVLBase(tokenizer).write(ask(say(Role.USER, "x")))


@pytest.mark.parametrize("case", golden("chat_context.json")["raw"], ids=lambda c: c["query"][:9])
def test_text_completions(tokenizer, chat, case):
    """As text or as the original's ids, which name a file: one place for each image, and no file."""
    for ids in (tokenizer.encode(case["query"]), case["ids"]):
        assert list(chat.with_placeholders(ids, "f")) == with_pads(case["ids"], each=1)


@pytest.mark.parametrize(
    "text", ["<img>unclosed", "<img>a<img>b</img>", "a</img><img>", "<img><img>"]
)
def test_text_completions_with_broken_images(tokenizer, chat, text):
    with pytest.raises(InvalidArgumentError) as caught:
        chat.with_placeholders(tokenizer.encode(text), "spec.text")
    assert caught.value.field == "spec.text"


def test_prompts_of_text_completions_may_have_stray_ends(tokenizer, chat):
    ids = tokenizer.encode("a</img>b")
    assert list(chat.with_placeholders(ids, "f")) == ids


@pytest.mark.parametrize(
    "content", [b"", b"IQ== 0\n", b"IQ== x\n", b"!!!! 0\n", b"IQ==\n", b"\xff\n"]
)
def test_broken_vocabularies(tmp_path, content):
    (tmp_path / "qwen.tiktoken").write_bytes(content)
    with pytest.raises(ValueError, match=r"qwen\.tiktoken"):
        load_tokenizer(tmp_path)


def test_system_messages_are_one_at_the_beginning_and_never_forgotten(chat, tokenizer):
    turns = [say(Role.USER, "a"), say(Role.ASSISTANT, "b"), say(Role.USER, "c")]
    wanted = chat.write(ask(say(Role.SYSTEM, "S\n\nT"), *turns)).token_ids
    first, second = say(Role.SYSTEM, "S"), say(Role.SYSTEM, "T")
    for messages in ((first, second, *turns), (*turns, first, second), (first, *turns, second)):
        assert chat.write(ask(*messages)).token_ids == wanted
    narrow = QwenVLChat(tokenizer, image_tokens=256, history_window=1)
    text = tokenizer.decode(narrow.write(ask(*turns[:2], second, turns[2])).token_ids)
    assert "T" in text
    assert "a" not in text.replace("assistant", "")


def test_thinking_is_not_promised(chat):
    assert chat.write(ask(say(Role.USER, "a"), enable_thinking=False)).token_ids
    with pytest.raises(UnsupportedParameterError) as caught:
        chat.write(ask(say(Role.USER, "a"), enable_thinking=True))
    assert caught.value.field == "spec.template.enable_thinking"
