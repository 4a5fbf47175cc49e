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

from inference_service.domain import ChatMessage, ImagePart, Media, Part, Role, TextPart, VideoPart
from inference_service.errors import InvalidArgumentError, ServiceError, UnsupportedParameterError
from inference_service.text.jinja_template import JinjaTemplate


# Digits pass unchanged through the filters of templates: trim, upper, tojson.
_MARK: Final = re.compile(r"730(\d{9})037")
_SHAPES_KEPT: Final = 256
_MAX_PARTS_KEPT: Final = 256
"""The result of a longer conversation is computed anew, so that what is kept needs little memory."""
_ANY_TEXT: Final = (TextPart(text="x"),)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something that a template leaves out, or a refusal of the whole conversation.

    Attributes:
        kind: `text`, `name`, `media` or `refusal`.
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
        message = messages[self.message]
        role = message.role.value
        if self.kind == "text":
            advice = "" if message.role is Role.USER else ": write it into a user message"
            return UnsupportedParameterError(
                f"The chat template of this model leaves out this {role} message{advice}.",
                field=f"spec.messages[{index}]",
            )
        part = message.parts[self.part]
        what = "videos" if isinstance(part, VideoPart) else "images"
        advice = "" if message.role is Role.USER else f": send {what} in a user message"
        place = f"spec.messages[{index}].parts[{self.part}].{what.removesuffix('s')}"
        return UnsupportedParameterError(
            f"The chat template of this model leaves out {what} in {role} messages{advice}.",
            field=(not isinstance(part, TextPart) and part.field) or place,
        )


class TemplateCheck:
    """Checks conversations against one template."""

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
        self._find = lru_cache(_SHAPES_KEPT)(self._first_left_out)

    def left_out(
        self, messages: Sequence[ChatMessage], *, add_generation_prompt: bool = True
    ) -> LeftOut | None:
        """The first thing in a conversation that the template leaves out; None = it renders everything."""
        parts = sum(max(1, len(message.parts)) for message in messages)
        find = self._find if parts <= _MAX_PARTS_KEPT else self._first_left_out
        return find(_shape(messages), add_generation_prompt)

    def _first_left_out(self, shape: tuple[ChatMessage, ...], opens: bool) -> LeftOut | None:
        try:
            rendered = self._render(shape, opens)
        except InvalidArgumentError as error:
            return LeftOut("refusal", reason=_MARK.sub("...", error.message))
        marks = set(_MARK.findall(rendered))
        for kind, message, part, text in _texts(shape):
            if not marks.issuperset(_MARK.findall(text)):
                return LeftOut(kind, message, part)
        wanted = [isinstance(part, VideoPart) for message in shape for part in _media(message)]
        if self._kinds(rendered) == wanted:
            return None
        return self._first_left_out_media(shape, opens, len(self._kinds(rendered)))

    def _first_left_out_media(
        self, shape: tuple[ChatMessage, ...], opens: bool, shown: int
    ) -> LeftOut:
        """The first image or video of the first message that loses some."""
        holders = [index for index, message in enumerate(shape) if _media(message)]
        for index in holders:
            texts = tuple(part for part in shape[index].parts if isinstance(part, TextPart))
            without = replace(shape[index], parts=texts or _ANY_TEXT)
            others = (*shape[:index], without, *shape[index + 1 :])
            try:
                rest = len(self._kinds(self._render(others, opens)))
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

    def _render(self, shape: Sequence[ChatMessage], opens: bool) -> str:
        return self._template.render(
            shape, add_generation_prompt=opens, in_parts=self.in_parts, quote_refusal=True
        )

    def _roles_in_parts(self) -> frozenset[Role]:
        """The roles whose text the template renders only as a list of parts."""
        turns: dict[Role, tuple[Role, ...]] = {
            Role.USER: (Role.USER,),
            Role.SYSTEM: (Role.SYSTEM, Role.USER),
            Role.ASSISTANT: (Role.USER, Role.ASSISTANT, Role.USER),
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


def _shape(messages: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
    """The conversation with a mark in place of every text and name; of white space the first character stays."""
    numbers = iter(range(10**9))

    def mark(text: str) -> str:
        return f"730{next(numbers):09d}037" if text.strip() else text[:1]

    def shape(part: Part) -> Part:
        if isinstance(part, TextPart):
            return TextPart(text=mark(part.text))
        return ImagePart() if isinstance(part, ImagePart) else VideoPart(frames=())

    return tuple(
        ChatMessage(
            role=message.role, parts=tuple(map(shape, message.parts)), name=mark(message.name)
        )
        for message in messages
    )


def _texts(shape: Sequence[ChatMessage]) -> Iterator[tuple[str, int, int, str]]:
    """The names and texts of a conversation: (kind, index of the message, index of the part, text)."""
    for index, message in enumerate(shape):
        yield "name", index, 0, message.name
        for position, part in enumerate(message.parts):
            yield "text", index, position, _text(part)


def _text(part: Part) -> str:
    return part.text if isinstance(part, TextPart) else ""


def _media(message: ChatMessage) -> list[Media]:
    return [part for part in message.parts if not isinstance(part, TextPart)]


def _first_media(message: ChatMessage) -> int:
    return next(i for i, part in enumerate(message.parts) if not isinstance(part, TextPart))
