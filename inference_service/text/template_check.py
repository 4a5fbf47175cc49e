"""Finds what a chat template leaves out of a conversation.

Templates drop what their authors did not think of, without a word: a late system message, an image in an answer, a
name. Therefore a conversation of the same shape, with a mark in place of every text, is rendered first: what is not in
the result is missing in the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
import re
from typing import Final

from inference_service.domain import (
    EFFORTS,
    ChatMessage,
    ImagePart,
    Media,
    Part,
    Role,
    TextPart,
    Tool,
    ToolCall,
    VideoPart,
)
from inference_service.errors import InvalidArgumentError, ServiceError, UnsupportedParameterError
from inference_service.text.conversation import tools_error
from inference_service.text.jinja_template import JinjaTemplate
from inference_service.text.tool_text import arguments_of


# Digits pass unchanged through the filters of templates: trim, upper, tojson.
_MARK: Final = re.compile(r"730(\d{9})037")
_SHAPES_KEPT: Final = 256
_MAX_PARTS_KEPT: Final = 256
"""The result of a longer conversation is computed anew, so that what is kept needs little memory."""
_ANY_TEXT: Final = (TextPart(text="x"),)
_TOOL: Final = Tool(name="730999999999037")
"""A tool in place of every list of tools."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something that a template leaves out, or a refusal of the whole conversation.

    Attributes:
        kind: `text`, `name`, `media`, `tool_calls`, `tools` or `refusal`.
        message: Index of its message.
        part: Index of the part.
        reason: The template's refusal.
    """

    kind: str
    message: int = 0
    part: int = 0
    reason: str = ""

    def error(self, messages: Sequence[ChatMessage], index: int) -> ServiceError:
        """The error for the caller; names are never refused, but written into the texts.

        Args:
            messages: The conversation that was checked.
            index: The index of the message in the request.
        """
        if self.kind == "refusal":
            return InvalidArgumentError(self.reason, field="spec.messages")
        if self.kind == "tools":
            return tools_error("tools", "spec.tools")
        if self.kind == "tool_calls":
            return tools_error("tool calls", f"spec.messages[{index}].tool_calls")
        message = messages[self.message]
        role = message.role.value
        if self.kind == "text":
            advice = "" if message.role is Role.USER else ": write it into a user message"
            return UnsupportedParameterError(
                f"The chat template of this model leaves out this {role} message{advice}.",
                field=f"spec.messages[{index}]",
            )
        part = message.parts[self.part]
        assert not isinstance(part, TextPart)
        what = "videos" if isinstance(part, VideoPart) else "images"
        advice = "" if message.role is Role.USER else f": send {what} in a user message"
        place = f"spec.messages[{index}].parts[{self.part}].{what.removesuffix('s')}"
        return UnsupportedParameterError(
            f"The chat template of this model leaves out {what} in {role} messages{advice}.",
            field=part.field or place,
        )


class TemplateCheck:
    """Checks conversations against one template.

    Attributes:
        in_parts: Roles whose text is passed as a list of parts.
        thinking_switch: The template has a switch for thinking.
        always_thinks: Without the switch, every answer begins with thinking.
        efforts: Reasoning efforts that the template knows; empty = none.
        has_tools: The template renders tools, calls and results.
    """

    def __init__(self, template: JinjaTemplate, *, image: str, video: str | None) -> None:
        """Takes the template and its placeholders.

        Args:
            template: The template.
            image: Its placeholder for an image.
            video: Its placeholder for a video; None = the model has no videos.
        """
        self._template = template
        self._image = image
        self._placeholder = re.compile("|".join(re.escape(text) for text in (image, video) if text))
        self.in_parts = self._roles_in_parts()
        self.thinking_switch, self.always_thinks = self._thinking()
        self.efforts = self._efforts()
        self.has_tools = self._tools()
        self._find = lru_cache(_SHAPES_KEPT)(self._first_left_out)

    def left_out(
        self,
        messages: Sequence[ChatMessage],
        *,
        add_generation_prompt: bool = True,
        with_tools: bool = False,
    ) -> LeftOut | None:
        """The first thing in a conversation that the template leaves out; None = it renders everything.

        Args:
            messages: The conversation.
            add_generation_prompt: Open an assistant turn after the last message.
            with_tools: Tools are passed to the template.
        """
        parts = sum(max(1, len(message.parts)) + len(message.tool_calls) for message in messages)
        find = self._find if parts <= _MAX_PARTS_KEPT else self._first_left_out
        return find(_shape(messages), add_generation_prompt, with_tools)

    def _first_left_out(
        self, shape: tuple[ChatMessage, ...], opens: bool, with_tools: bool
    ) -> LeftOut | None:
        try:
            rendered = self._render(shape, opens, with_tools)
        except InvalidArgumentError as error:
            return LeftOut("refusal", reason=_MARK.sub("...", error.message))
        marks = set(_MARK.findall(rendered))
        for kind, message, part, text in _texts(shape):
            if not marks.issuperset(_MARK.findall(text)):
                return LeftOut(kind, message, part)
        if with_tools and not marks.issuperset(_MARK.findall(_TOOL.name)):
            return LeftOut("tools")
        wanted = [isinstance(part, VideoPart) for message in shape for part in _media(message)]
        if self._kinds(rendered) == wanted:
            return None
        return self._first_left_out_media(shape, opens, with_tools, len(self._kinds(rendered)))

    def _first_left_out_media(
        self, shape: tuple[ChatMessage, ...], opens: bool, with_tools: bool, shown: int
    ) -> LeftOut:
        """The first image or video of the first message that loses some."""
        holders = [index for index, message in enumerate(shape) if _media(message)]
        for index in holders:
            texts = tuple(part for part in shape[index].parts if isinstance(part, TextPart))
            without = replace(shape[index], parts=texts or _ANY_TEXT)
            others = (*shape[:index], without, *shape[index + 1 :])
            try:
                rest = len(self._kinds(self._render(others, opens, with_tools)))
            except InvalidArgumentError:
                continue
            if shown - rest != len(_media(shape[index])):
                return LeftOut("media", index, _first_media(shape[index]))
        if not holders:
            return LeftOut(
                "refusal", reason="The model's chat template renders an image that was not sent."
            )
        return LeftOut("media", holders[0], _first_media(shape[holders[0]]))

    def _kinds(self, rendered: str) -> list[bool]:
        """Whether each placeholder is that of a video."""
        return [found != self._image for found in self._placeholder.findall(rendered)]

    def _render(self, shape: Sequence[ChatMessage], opens: bool, with_tools: bool = False) -> str:
        return self._template.render(
            shape,
            add_generation_prompt=opens,
            tools=(_TOOL,) if with_tools else (),
            in_parts=self.in_parts,
            quote_refusal=True,
        )

    def _roles_in_parts(self) -> frozenset[Role]:
        """The roles whose text the template renders only as a list of parts."""
        turns: dict[Role, tuple[Role, ...]] = {
            Role.USER: (Role.USER,),
            Role.SYSTEM: (Role.SYSTEM, Role.USER),
            Role.ASSISTANT: (Role.USER, Role.ASSISTANT, Role.USER),
            Role.TOOL: (Role.USER, Role.ASSISTANT, Role.TOOL),
        }
        found: frozenset[Role] = frozenset()
        for role, roles in turns.items():
            shape = _shape([ChatMessage(role=turn, parts=_ANY_TEXT) for turn in roles])
            if not self._shows(shape, role, found) and self._shows(shape, role, found | {role}):
                found |= {role}
        return found

    def _shows(self, shape: Sequence[ChatMessage], role: Role, in_parts: frozenset[Role]) -> bool:
        """Whether the texts of a role appear, and not as Python's notation of a list."""
        try:
            rendered = self._template.render(shape, in_parts=in_parts)
        except InvalidArgumentError:
            return False
        marks = set(_MARK.findall(rendered))
        wanted = {
            mark for m in shape if m.role is role for mark in _MARK.findall(_text(m.parts[0]))
        }
        return marks >= wanted and "'type': 'text'" not in rendered

    def _thinking(self) -> tuple[bool, bool]:
        """Whether the template has a switch for thinking, and whether without one it always opens thinking."""
        shape = _shape([ChatMessage(role=Role.USER, parts=_ANY_TEXT)])
        try:
            plain, on, off = (
                self._template.render(shape, in_parts=self.in_parts, enable_thinking=wanted)
                for wanted in (None, True, False)
            )
        except InvalidArgumentError:
            return False, False
        return on != off, plain.rstrip().endswith("<think>")

    def _efforts(self) -> tuple[str, ...]:
        """The reasoning efforts that the template accepts, if they make a difference."""
        shape = _shape([ChatMessage(role=Role.USER, parts=_ANY_TEXT)])
        found: dict[str, str] = {}
        for effort in EFFORTS[1:]:
            try:
                found[effort] = self._template.render(
                    shape, in_parts=self.in_parts, reasoning_effort=effort
                )
            except InvalidArgumentError:
                continue
        return tuple(found) if len(set(found.values())) > 1 else ()

    def _tools(self) -> bool:
        """Whether the template renders tools, and a conversation with a call and its result, completely."""
        call = ToolCall(name="x", arguments='{"x": "x"}')
        called = ChatMessage(role=Role.ASSISTANT, parts=_ANY_TEXT, tool_calls=(call,))
        user, result = (ChatMessage(role=role, parts=_ANY_TEXT) for role in (Role.USER, Role.TOOL))
        shape = _shape([user, called, result])
        return self._first_left_out(shape, opens=True, with_tools=True) is None


def _shape(messages: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
    """The conversation with a mark in place of every text and name; of white space the first character stays."""
    numbers = iter(range(10**9))

    def mark(text: str) -> str:
        return f"730{next(numbers):09d}037" if text.strip() else text[:1]

    def shape(part: Part) -> Part:
        if isinstance(part, TextPart):
            return TextPart(text=mark(part.text))
        return ImagePart() if isinstance(part, ImagePart) else VideoPart(frames=())

    def shape_call(call: ToolCall) -> ToolCall:
        arguments = arguments_of(call)
        if isinstance(arguments, str):  # with a letter before the mark, which alone is JSON
            return ToolCall(name=mark(call.name), arguments=f"x{mark(arguments)}")
        written = f'{{"{mark("x")}": "{mark("x")}"}}' if arguments else ""
        return ToolCall(name=mark(call.name), arguments=written)

    return tuple(
        ChatMessage(
            role=message.role,
            parts=tuple(map(shape, message.parts)),
            name=mark(message.name),
            tool_calls=tuple(map(shape_call, message.tool_calls)),
            reasoning=mark(message.reasoning),
        )
        for message in messages
    )


def _texts(shape: Sequence[ChatMessage]) -> Iterator[tuple[str, int, int, str]]:
    """The names and texts of a conversation: (kind, index of the message, index of the part, text)."""
    for index, message in enumerate(shape):
        yield "name", index, 0, message.name
        for position, part in enumerate(message.parts):
            yield "text", index, position, _text(part)
        for call in message.tool_calls:
            yield "tool_calls", index, 0, f"{call.name} {call.arguments}"


def _text(part: Part) -> str:
    return part.text if isinstance(part, TextPart) else ""


def _media(message: ChatMessage) -> list[Media]:
    return [part for part in message.parts if not isinstance(part, TextPart)]


def _first_media(message: ChatMessage) -> int:
    return next(i for i, part in enumerate(message.parts) if not isinstance(part, TextPart))
