"""Checks and arrangements of conversations that the chat formats of several families need."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from inference_service.domain import ChatMessage, ChatRequest, Role, TextPart
from inference_service.errors import UnsupportedParameterError
from inference_service.text.limits import MAX_CHARACTERS, too_many_characters
from inference_service.text.tool_text import texts_of


def with_names_as_text(messages: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
    """The messages without author names, for a format that has none.

    OpenAI's `name` tells apart participants that share a role. A name that all messages of a role share, or that only
    repeats the role, tells nothing and is left out; otherwise it is written before the message, as `NAME: `.
    """
    names = defaultdict[Role, set[str]](set)
    for message in messages:
        names[message.role].add(_own_name(message))
    return tuple(
        _with_name_as_text(message)
        if len(names[message.role]) > 1 and _own_name(message)
        else replace(message, name="")
        for message in messages
    )


def _own_name(message: ChatMessage) -> str:
    """The name of the author, if it says more than the role."""
    name = message.name.strip()
    return "" if name.lower() == message.role.value else name


def _with_name_as_text(message: ChatMessage) -> ChatMessage:
    name = TextPart(text=f"{_own_name(message)}: ")
    first, *rest = message.parts or (TextPart(text=""),)
    if isinstance(first, TextPart):
        first = TextPart(text=name.text + first.text)
        return replace(message, parts=(first, *rest), name="")
    return replace(message, parts=(name, *message.parts), name="")


def refuse_tools(request: ChatRequest) -> None:
    """Refuses tools, calls and results, for a format that has none.

    Raises:
        UnsupportedParameterError: The request has some.
    """
    if request.tools:
        raise tools_error("tools", "spec.tools")
    for index, message in enumerate(request.messages):
        if message.role is Role.TOOL:
            raise tools_error("results of tools", f"spec.messages[{index}].role")
        if message.tool_calls:
            raise tools_error("tool calls", f"spec.messages[{index}].tool_calls")


def tools_error(what: str, field: str) -> UnsupportedParameterError:
    """The error for tools, or calls or results of tools, that the prompt would not contain."""
    return UnsupportedParameterError(
        f"The chat format of this model has no {what}: leave them out, or write them into a message's text.",
        field=field,
    )


def refuse_too_long(messages: Sequence[ChatMessage]) -> None:
    """Refuses a conversation whose text is too long for any context window, before it is tokenised.

    Args:
        messages: The conversation.

    Raises:
        ContextLengthError: Its text has more than `MAX_CHARACTERS` characters.
    """
    if sum(len(text) for message in messages for text in texts_of(message)) > MAX_CHARACTERS:
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
    """
    indexed = [(message, index) for index, message in enumerate(messages)]
    system = [(message, index) for message, index in indexed if message.role is Role.SYSTEM]
    if not system:
        return tuple(indexed)
    first, index = system[0]
    parts = [message for message, _ in system]
    shared = first.name if len({message.name for message in parts}) == 1 else ""
    texts = (
        "".join(part.text for part in m.parts if isinstance(part, TextPart))
        for m in (parts if shared else with_names_as_text(parts))
    )
    merged = ChatMessage(
        role=Role.SYSTEM,
        parts=(TextPart(text="\n\n".join(filter(None, texts))),),
        name=shared,
    )
    rest = [(message, place) for message, place in indexed if message.role is not Role.SYSTEM]
    return ((merged, index), *rest)
