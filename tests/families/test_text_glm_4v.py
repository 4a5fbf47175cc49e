"""Conversations of GLM-4V-9B: on a made-up vocabulary everywhere, on the released one where it is at hand."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
import shutil
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from inference_service.backend.served_model import ServedModel
from inference_service.domain import (
    ChatMessage,
    ChatRequest,
    ImagePart,
    Role,
    TextCompletionRequest,
    TextPart,
)
from inference_service.errors import ContextLengthError, InvalidArgumentError
from inference_service.families.glm_4v.text import SPECIAL_TOKENS, GlmChat, load_tokenizer
from inference_service.text.limits import MAX_CHARACTERS
from inference_service.text.tokenizer import Tokenizer
from tests.support.glm_4v import BEGIN, DATA, END, GOLDEN, PLACEHOLDER, processed, write_vocabulary


RANKS = DATA["tokenizer_file"]["ranks"]
CHATS = {  # tools are not served
    chat["name"]: chat for chat in DATA["chat"] if chat["name"] != "metadata"
}
IMAGE = ImagePart(data=b"x")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("glm")
    write_vocabulary(directory)
    shutil.copy(GOLDEN / "config" / "config.json", directory)
    return directory


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> Tokenizer:
    return load_tokenizer(model_dir)


@pytest.fixture(scope="module")
def chat(tokenizer: Tokenizer) -> GlmChat:
    return GlmChat(tokenizer)


def request_of(messages: list[dict[str, str]], **options: Any) -> ChatRequest:
    """A conversation of the golden data; the image comes last here, and first in the prompt."""
    turns = []
    for message in messages:
        parts: list[TextPart | ImagePart] = [TextPart(text=message["content"])]
        if message.get("image"):
            parts.append(IMAGE)
        turns.append(ChatMessage(role=Role(message["role"]), parts=tuple(parts)))
    return ChatRequest(request_id="r", model="m", messages=tuple(turns), **options)


def test_special_ids(tokenizer):
    assert tokenizer.special_tokens == DATA["special_ids"]
    assert list(DATA["special_ids"]) == list(SPECIAL_TOKENS)


@pytest.mark.parametrize("name", CHATS)
def test_the_prompt_has_the_structure_of_the_original(chat, tokenizer, name):
    golden = CHATS[name]
    ids = list(chat.write(request_of(golden["messages"])).token_ids)
    special = [token_id for token_id in golden["ids"] if token_id >= RANKS]
    assert [token_id for token_id in ids if token_id >= RANKS] == special
    text = "[gMASK]<sop>"
    for message in golden["messages"]:
        image = "<|begin_of_image|><|endoftext|><|end_of_image|>" if message.get("image") else ""
        text += f"<|{message['role']}|>\n{image}{message['content']}"
    text += "<|assistant|>"
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    if golden["rendered_text"]:
        assert text == golden["rendered_text"]


def test_released_vocabulary():
    """Ids as the original tokenizer gave them; the file's licence keeps it out of this repository."""
    name = os.environ.get("QWENVL_GLM_TOKENIZER")
    if name is None:
        pytest.skip("QWENVL_GLM_TOKENIZER does not name the released tokenizer.model")
    path = Path(name)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == DATA["tokenizer_file"]["sha256"]
    tokenizer = load_tokenizer(path.parent)
    for case in DATA["encode"]:
        assert tokenizer.encode_plain(case["text"]) == case["ids"]
    for golden in CHATS.values():
        written = GlmChat(tokenizer).write(request_of(golden["messages"]))
        assert list(written.token_ids) == golden["ids"]


def test_words_are_split_as_the_original_splits_them(tmp_path):
    """Digits by threes, and letters apart from digits: merges do not reach over these borders."""
    tokens = [bytes([value]) for value in range(256)]
    tokens += [b"12", b"123", b"34", b"1234", b"a1", b"  ", b" a"]
    lines = [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]
    (tmp_path / "tokenizer.model").write_bytes(b"\n".join(lines))
    tokenizer = load_tokenizer(tmp_path)
    words = [tokenizer.token_text(i) for i in tokenizer.encode_plain("1234 a1  a")]
    assert words == ["123", "4", " a", "1", " ", " a"]


@settings(deadline=None)
@given(text=st.text(max_size=40))
def test_text_is_never_special(chat, tokenizer, text):
    ids = chat.write(request_of([{"role": "user", "content": f"{text}<|assistant|>"}])).token_ids
    special = tokenizer.special_tokens
    assert list(ids).count(special["<|assistant|>"]) == 1
    assert list(ids).count(special["<|user|>"]) == 1


def test_empty_messages_are_left_out(chat, tokenizer):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]
    text = tokenizer.decode(chat.write(request_of(messages)).token_ids, skip_special_tokens=False)
    assert text == "[gMASK]<sop><|user|>\na<|assistant|>"


def test_continuing_an_answer_opens_no_turn(chat, tokenizer):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "It is"}]
    options = {"add_generation_prompt": False, "continue_final_message": True}
    text = tokenizer.decode(
        chat.write(request_of(messages, **options)).token_ids, skip_special_tokens=False
    )
    assert text == "[gMASK]<sop><|user|>\na<|assistant|>\nIt is"


def test_continuing_an_empty_answer_opens_its_turn(chat, tokenizer):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]
    request = request_of(messages, add_generation_prompt=False, continue_final_message=True)
    text = tokenizer.decode(chat.write(request).token_ids, skip_special_tokens=False)
    assert text == "[gMASK]<sop><|user|>\na<|assistant|>\n"


def test_a_late_system_message_is_rendered_where_it_stands(chat, tokenizer):
    messages = [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]
    text = tokenizer.decode(chat.write(request_of(messages)).token_ids, skip_special_tokens=False)
    assert text == "[gMASK]<sop><|user|>\na<|system|>\nb<|assistant|>"


def test_absurd_length(chat):
    with pytest.raises(ContextLengthError):
        chat.write(request_of([{"role": "user", "content": "x" * (MAX_CHARACTERS + 1)}]))


@pytest.fixture(scope="module")
def model(model_dir: Path) -> ServedModel:
    return ServedModel.load(model_dir, ("glm",))


@pytest.mark.parametrize("name", ["image", "image_second_turn"])
def test_an_image_takes_its_place(model, name):
    golden = CHATS[name]
    prompt = model.prompts.build(request_of(golden["messages"]), [processed("wide_rgb")])
    [span] = prompt.images
    assert span.num_tokens == 38
    assert span.start == prompt.token_ids.index(BEGIN)
    place = prompt.token_ids[span.start : span.start + span.num_tokens]
    assert place == (BEGIN, *[PLACEHOLDER] * 36, END)
    assert prompt.token_ids.count(PLACEHOLDER) == 36


def completion(prompt: str | tuple[int, ...], images: int) -> TextCompletionRequest:
    return TextCompletionRequest(request_id="r", model="m", prompt=prompt, images=(IMAGE,) * images)


def test_text_completions_write_an_image_as_the_original_does(model):
    text = "[gMASK]<sop><|user|>\n<|begin_of_image|><|endoftext|><|end_of_image|>a<|endoftext|>"
    ids = tuple(model.tokenizer.encode(text))
    for prompt in (text, ids):
        built = model.prompts.build(completion(prompt, 1), [processed("wide_rgb")])
        assert len(built.token_ids) == len(ids) + 35
        assert built.images[0].start == ids.index(BEGIN)
        assert built.token_ids[-1] == PLACEHOLDER  # an end of text is none of the image's
        with pytest.raises(InvalidArgumentError):
            model.prompts.build(completion(prompt, 0), [])
    for broken in ((BEGIN, PLACEHOLDER), (PLACEHOLDER, END), (BEGIN, 5, END)):
        with pytest.raises(InvalidArgumentError):
            model.prompts.build(completion(broken, 1), [processed("wide_rgb")])


def test_a_vocabulary_of_another_size_is_refused(model_dir, tmp_path):
    shutil.copy(model_dir / "config.json", tmp_path)
    lines = (model_dir / "tokenizer.model").read_bytes().splitlines()
    (tmp_path / "tokenizer.model").write_bytes(b"\n".join(lines[:-1]))
    with pytest.raises(ValueError, match="boi_token_id"):
        ServedModel.load(tmp_path, ("glm",))
