"""Builds the messages of a conversation: `[system("..."), user("...", image(x))]`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from qwenvl.fields import built
from qwenvl.images import Images, ImageSource, image, images_of, is_image
from qwenvl.inference.v1 import message_pb2 as message_pb


Content = str | message_pb.Part | message_pb.Video | ImageSource
"""A part of a message: text, an image (see `qwenvl.image`), a video, or a part of the API."""

Question = str | message_pb.Message | Sequence[message_pb.Message]
"""A question, or a conversation with the oldest message first."""


def user(*parts: Content, name: str = "") -> message_pb.Message:
    """A message of the user.

    Args:
        parts: Texts, images and videos in their order. A text is text; an image as text is `image(...)`.
        name: Optional name of the author.

    Raises:
        TypeError: A part is neither of them.
        OSError: As `qwenvl.image`.
        ValueError: As `qwenvl.image`.
    """
    return _message(message_pb.ROLE_USER, parts, name)


def system(*parts: Content) -> message_pb.Message:
    """Instructions to the model; arguments and errors as `user`."""
    return _message(message_pb.ROLE_SYSTEM, parts)


def assistant(
    *parts: Content,
    name: str = "",
    reasoning: str = "",
    tool_calls: Iterable[message_pb.ToolCall] = (),
) -> message_pb.Message:
    """An earlier answer of the model; other arguments and errors as `user`.

    Args:
        parts: Its content.
        name: Optional name of the author.
        reasoning: Its reasoning.
        tool_calls: Its calls of tools.
    """
    message = _message(message_pb.ROLE_ASSISTANT, parts, name)
    message.MergeFrom(built(message_pb.Message, {"reasoning": reasoning, "tool_calls": tool_calls}))
    return message


def tool_result(call: message_pb.ToolCall | str, *parts: Content) -> message_pb.Message:
    """The result of a call of a tool.

    Args:
        call: The call, or its id.
        parts: Texts and images of the result, as of `user`; errors likewise.
    """
    message = _message(message_pb.ROLE_TOOL, parts)
    call_id = call.id if isinstance(call, message_pb.ToolCall) else call
    message.MergeFrom(built(message_pb.Message, {"call": call_id}, {"call": "tool_call_id"}))
    return message


def messages_of(
    question: Question, images: Images | None = None, instructions: str | None = None
) -> list[message_pb.Message]:
    """The conversation that a client sends; the caller's messages are not changed.

    Args:
        question: A question, or a conversation.
        images: Put before the question, or before the other parts of the conversation's last user message.
        instructions: A system message to put first.

    Raises:
        TypeError: This is not a conversation.
        ValueError: There is no user message for the images, or a second system message.
        OSError: As `qwenvl.image`.
    """
    messages = _conversation(question)
    if shown := images_of(images):
        _put_before(messages, shown)
    if instructions is not None:
        if not isinstance(instructions, str):
            raise TypeError(f"system is a text, not {type(instructions).__name__}")
        if messages and messages[0].role == message_pb.ROLE_SYSTEM:
            raise ValueError(
                "system is given beside a conversation that begins with a system message"
            )
        messages.insert(0, system(instructions))
    return messages


def _conversation(question: object) -> list[message_pb.Message]:
    if isinstance(question, str):
        return [user(question)]
    if isinstance(question, message_pb.Message):
        return [question]
    kinds = (bytes, bytearray, memoryview, Mapping)
    if isinstance(question, kinds) or not isinstance(question, Iterable):
        raise TypeError(
            f"a question is text or messages such as user('...'), not {type(question).__name__}"
        )
    messages = list(question)
    for message in messages:
        if not isinstance(message, message_pb.Message):
            raise TypeError(
                f"a conversation has messages such as user('...'), not {type(message).__name__}"
            )
    return messages


def _put_before(messages: list[message_pb.Message], images: Sequence[message_pb.Image]) -> None:
    for index in reversed(range(len(messages))):
        if messages[index].role == message_pb.ROLE_USER:
            changed = message_pb.Message()
            changed.CopyFrom(messages[index])
            del changed.parts[:]
            changed.parts.extend(message_pb.Part(image=image) for image in images)
            changed.parts.extend(messages[index].parts)
            messages[index] = changed
            return
    raise ValueError("images are given beside a conversation without a user message")


def _message(
    role: message_pb.Role, contents: Iterable[Content], name: str = ""
) -> message_pb.Message:
    message = built(message_pb.Message, {"name": name})
    message.role = role
    message.parts.extend(map(part_of, contents))
    return message


def part_of(content: Content) -> message_pb.Part:
    """One part of a message.

    Raises:
        TypeError: It is none.
        OSError: As `qwenvl.image`.
        ValueError: As `qwenvl.image`.
    """
    if isinstance(content, str):
        return message_pb.Part(text=content)
    if isinstance(content, message_pb.Part):
        return content
    if isinstance(content, message_pb.Video):
        return message_pb.Part(video=content)
    if is_image(content):
        return message_pb.Part(image=image(content))
    raise TypeError(
        f"a part of a message is text, an image or a video, not {type(content).__name__}"
    )
