"""Conversations: what is built, and that nothing given is dropped."""

from __future__ import annotations

from typing import Any

import pytest

from qwenvl import assistant, image, system, user, video
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.messages import messages_of
from tests.support.images import draw


PNG = draw("red", "circle", size=(40, 30)).png
SHOWN = message_pb.Part(image=message_pb.Image(data=PNG))


def text(value: str) -> message_pb.Part:
    return message_pb.Part(text=value)


def test_builders() -> None:
    assert user("a", image(PNG), "b") == message_pb.Message(
        role=message_pb.ROLE_USER, parts=[text("a"), SHOWN, text("b")]
    )
    assert user(PNG, text("x"), name="Ada").parts == [SHOWN, text("x")]
    assert user("x", name="Ada").name == "Ada"
    assert system("be kind").role == message_pb.ROLE_SYSTEM
    assert assistant("a circle").role == message_pb.ROLE_ASSISTANT
    assert user(video([PNG])).parts[0].video.frames == [message_pb.Image(data=PNG)]
    assert user("x.png").parts == [text("x.png")]  # text is never a path here


@pytest.mark.parametrize("part", [None, 5, ["a"], {"type": "text"}, user("x")])
def test_what_is_no_part_is_refused(part: Any) -> None:
    with pytest.raises(TypeError, match="part of a message"):
        user(part)


def test_images_beside_messages_reach_the_last_question() -> None:
    history = [system("s"), user("one"), assistant("1"), user("two"), assistant("2")]
    before = [message.SerializeToString() for message in history]
    for images in (PNG, [PNG]):
        sent = messages_of(history, images)
        assert [len(message.parts) for message in sent] == [1, 1, 1, 2, 1]
        assert sent[3].parts == [SHOWN, text("two")]
    assert [message.SerializeToString() for message in history] == before
    assert messages_of(user("x"), PNG)[0].parts == [SHOWN, text("x")]
    assert messages_of("x", [PNG, PNG])[0].parts == [SHOWN, SHOWN, text("x")]
    with pytest.raises(ValueError, match="without a user message"):
        messages_of([system("s")], PNG)


def test_a_system_message_comes_first_and_once() -> None:
    assert messages_of("x", None, "s") == [system("s"), user("x")]
    with pytest.raises(ValueError, match="system"):
        messages_of([system("a"), user("x")], None, "s")


@pytest.mark.parametrize("question", [b"x", 5, None, ["x"], [{"role": "user"}], [user("x"), "y"]])
def test_what_is_no_conversation_is_refused(question: Any) -> None:
    with pytest.raises(TypeError):
        messages_of(question)
