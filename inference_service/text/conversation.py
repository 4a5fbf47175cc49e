"""Checks and arrangements of conversations that the chat formats of several families need."""

from __future__ import annotations

from collections.abc import Sequence

from inference_service.domain import ChatMessage, ChatRequest, Role, TextPart
from inference_service.errors import UnsupportedParameterError
from inference_service.text.limits import MAX_CHARACTERS, too_many_characters


def refuse_names(messages: Sequence[ChatMessage]) -> None:
    """Refuses author names, for a format that has none.

    Raises:
        UnsupportedParameterError: A message has a name.
    """
    for index, message in enumerate(messages):
        if message.name:
            raise name_error(message.role, index)


def name_error(role: Role, index: int) -> UnsupportedParameterError:
    """The error for a name that the prompt would not contain; `index` is that of its message."""
    return UnsupportedParameterError(
        f"The chat format of this model does not render the name of {role.value} messages:"
        " leave it out, or write the name into the message's text.",
        field=f"spec.messages[{index}].name",
    )


def refuse_too_long(messages: Sequence[ChatMessage]) -> None:
    """Refuses a conversation whose text is too long for any context window, before it is tokenised.

    Args:
        messages: The conversation.

    Raises:
        ContextLengthError: Its text has more than `MAX_CHARACTERS` characters.
    """
    parts = (part for message in messages for part in message.parts)
    if sum(len(part.text) for part in parts if isinstance(part, TextPart)) > MAX_CHARACTERS:
        raise too_many_characters("conversation", "spec.messages")


def check_thinking(request: ChatRequest, *, switch: bool = False, thinks: bool = False) -> None:
    """Refuses a request for, or against, thinking that the format cannot express.

    Args:
        request: The request.
        switch: The format has a switch for thinking.
        thinks: Without a switch: every answer begins with thinking.

    Raises:
        UnsupportedParameterError: `enable_thinking` is set to what the model does not do.
    """
    if request.enable_thinking is None or switch or request.enable_thinking is thinks:
        return
    wish, what = ("off", "always opens") if thinks else ("on", "has no switch for")
    raise UnsupportedParameterError(
        f"Thinking cannot be switched {wish} (enable_thinking): the chat format of this model {what} it. Leave it out.",
        field="spec.template.enable_thinking",
    )


def with_one_system_message(messages: Sequence[ChatMessage]) -> tuple[tuple[ChatMessage, int], ...]:
    """Moves the system messages to the front as one, with a blank line between their texts.

    Returns:
        The messages, each with its index in `messages`; the first system message's for all of them.

    Raises:
        UnsupportedParameterError: They have different names, so that one would be lost.
    """
    indexed = [(message, index) for index, message in enumerate(messages)]
    system = [(message, index) for message, index in indexed if message.role is Role.SYSTEM]
    if not system:
        return tuple(indexed)
    first, index = system[0]
    for message, place in system:
        if message.name != first.name:
            raise name_error(Role.SYSTEM, place if message.name else index)
    texts = (
        "".join(part.text for part in m.parts if isinstance(part, TextPart)) for m, _ in system
    )
    merged = ChatMessage(
        role=Role.SYSTEM,
        parts=(TextPart(text="\n\n".join(filter(None, texts))),),
        name=first.name,
    )
    rest = [(message, place) for message, place in indexed if message.role is not Role.SYSTEM]
    return ((merged, index), *rest)
