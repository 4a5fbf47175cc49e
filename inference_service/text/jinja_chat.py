"""Renders conversations to token ids with the model's Jinja template; user text contains no special tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import logging
from typing import Final

from inference_service.domain import (
    EFFORTS,
    ChatMessage,
    ChatRequest,
    ImagePart,
    Part,
    Role,
    TextPart,
    VideoPart,
)
from inference_service.errors import UnsupportedParameterError
from inference_service.model_spec import ToolNotation
from inference_service.text.conversation import (
    check_thinking,
    refuse_tools,
    with_names_as_text,
    with_one_system_message,
)
from inference_service.text.guard import SpecialTokenGuard
from inference_service.text.jinja_template import JinjaTemplate
from inference_service.text.output.reasoning import CLOSE_TAG, OPEN_TAG, ReasoningStart
from inference_service.text.prompt import ChatAbilities, WrittenChat
from inference_service.text.template_check import LeftOut, TemplateCheck
from inference_service.text.tokenizer import Tokenizer
from inference_service.text.tool_text import (
    has_tools,
    tool_with_changed_text,
    with_changed_text,
    with_tools_as_text,
)


_LOG: Final = logging.getLogger(__name__)


class JinjaChat:
    """The chat format of a model with a Jinja template."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: JinjaTemplate,
        *,
        placeholder: int,
        video_placeholder: int | None = None,
        write_videos: Callable[[str, Sequence[VideoPart]], str] | None = None,
        tools: ToolNotation = ToolNotation.NONE,
    ) -> None:
        """Takes the parts of the model.

        Args:
            tokenizer: The model's tokenizer.
            template: The model's template.
            placeholder: Id of the template's placeholder for an image.
            video_placeholder: The same for a video; None = the model has no videos.
            write_videos: Completes the videos of a rendered conversation, given in order; None = complete as rendered.
            tools: How the model writes tool calls. If that is HERMES, the template need not know tools.

        Raises:
            ValueError: The placeholder is not a special token of the tokenizer, so that users could write it.
        """
        if placeholder not in tokenizer.special_ids:
            raise ValueError("tokenizer.json: image_token_id of config.json is not a special token")
        self._tokenizer = tokenizer
        self._template = template
        self._write_videos = write_videos
        self._guard = SpecialTokenGuard(tokenizer.special_tokens)
        self._check = TemplateCheck(
            template,
            image=tokenizer.token_text(placeholder),
            video=None if video_placeholder is None else tokenizer.token_text(video_placeholder),
        )
        self._told_of_merging = False
        if tools is not ToolNotation.HERMES and not self._check.has_tools:
            tools = ToolNotation.NONE
        switch = self._check.thinking_switch
        self.abilities = ChatAbilities(
            tools=tools,
            reasoning=switch or self._check.always_thinks,
            thinking_switch=switch,
        )

    def write(self, request: ChatRequest) -> WrittenChat:
        """See `ChatFormat.write`."""
        rendered, start = self.render(request)
        return WrittenChat(token_ids=self._encode(rendered), reasoning=start)

    def render(self, request: ChatRequest) -> tuple[str, ReasoningStart]:
        """The conversation as text, and whether the answer begins with reasoning; raises as `write`.

        Special tokens that users wrote are marked, see `SpecialTokenGuard`.
        """
        check = self._check
        check_thinking(request, switch=check.thinking_switch, thinks=check.always_thinks)
        protect = self._guard.protect
        messages = self._complete(request)
        tools = request.tools if check.has_tools else ()
        rendered = self._template.render(
            [with_changed_text(message, protect) for message in messages],
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            enable_thinking=self._thinking(request),
            reasoning_effort=self._effort(request.reasoning_effort),
            tools=[tool_with_changed_text(tool, protect) for tool in tools],
            in_parts=check.in_parts,
        )
        start = self._reasoning_start(request, rendered)
        if self._write_videos is not None:
            videos = [part for part in request.media if isinstance(part, VideoPart)]
            rendered = self._write_videos(rendered, videos)
        return rendered, start

    def check(self) -> None:
        """Tries the template, and warns if it has no images.

        Raises:
            ValueError: It renders no message of a user, so that every request would fail.
        """
        turns = ((Role.USER,), (Role.SYSTEM, Role.USER))

        def problems(*parts: Part) -> list[LeftOut | None]:
            others = (TextPart(text="x"),)
            return [
                self._check.left_out(
                    [ChatMessage(role=r, parts=parts if r is Role.USER else others) for r in roles]
                )
                for roles in turns
            ]

        found = problems(TextPart(text="x"))
        if all(found):
            said = next((problem.reason for problem in found if problem and problem.reason), "")
            raise ValueError(
                f"the chat template renders no message of a user{said and f': {said}'}"
            )
        if all(problems(ImagePart(), TextPart(text="x"))):
            _LOG.warning(
                "the chat template renders no images: requests with images will be refused"
            )

    def with_placeholders(self, token_ids: Sequence[int], field: str) -> Sequence[int]:
        """See `ChatFormat.with_placeholders`: such prompts already have placeholders."""
        del field
        return token_ids

    def _complete(self, request: ChatRequest) -> Sequence[ChatMessage]:
        """The messages in an arrangement that the template renders completely.

        Names that it does not render are written into the texts, and system messages that it leaves out are moved into
        one at the beginning.

        Raises:
            ServiceError: It would leave something out nevertheless.
        """
        if self.abilities.tools is ToolNotation.NONE:
            refuse_tools(request)
        messages: Sequence[ChatMessage] = request.messages
        places: Sequence[int] = range(len(messages))
        if not self._check.has_tools and (request.tools or has_tools(messages)):
            written = with_tools_as_text(messages, request.tools)
            messages, places = [one for one, _ in written], [place for _, place in written]
        names_are_text = is_merged = False
        while problem := self._check.left_out(
            messages,
            add_generation_prompt=request.add_generation_prompt,
            with_tools=bool(request.tools) and self._check.has_tools,
        ):
            if problem.kind == "name" and not names_are_text:
                names_are_text = True
                messages = with_names_as_text(messages)
            elif not is_merged:
                is_merged = True
                merged = with_one_system_message(messages)
                messages = [message for message, _ in merged]
                places = [places[place] for _, place in merged]
            else:
                raise problem.error(messages, places[problem.message])
        if is_merged:
            self._tell_of_merging()
        return messages

    def _tell_of_merging(self) -> None:
        if not self._told_of_merging:
            self._told_of_merging = True
            _LOG.info(
                "the chat template renders one system message, at the beginning: others are moved into it"
            )

    def _thinking(self, request: ChatRequest) -> bool | None:
        """The value of the template's switch for thinking, also as a preference or a reasoning effort sets it.

        Raises:
            UnsupportedParameterError: There is to be no reasoning, but the template always opens it.
        """
        if request.enable_thinking is not None:
            return request.enable_thinking
        effort = request.reasoning_effort
        if self._check.thinking_switch:
            effort_wish = effort != EFFORTS[0] if effort else None
            return effort_wish if request.prefer_thinking is None else request.prefer_thinking
        if effort == EFFORTS[0] and self._check.always_thinks:
            raise UnsupportedParameterError(
                f"reasoning_effort is {effort}, but this model always reasons; leave it out.",
                field="spec.template.reasoning_effort",
            )
        return None

    def _effort(self, effort: str) -> str:
        """The nearest reasoning effort that the template knows, of two the lower one; empty = none."""
        known = self._check.efforts
        if effort in ("", EFFORTS[0]) or not known:
            return ""
        return min(known, key=lambda one: abs(EFFORTS.index(one) - EFFORTS.index(effort)))

    def _reasoning_start(self, request: ChatRequest, rendered: str) -> ReasoningStart:
        """What the answer to a prompt begins with."""
        if request.add_generation_prompt:
            prompt = rendered.rstrip()
            if prompt.endswith(OPEN_TAG):
                return ReasoningStart.OPEN
            if prompt.endswith(CLOSE_TAG):
                return ReasoningStart.CLOSED
            return ReasoningStart.OPTIONAL if self.abilities.reasoning else ReasoningStart.TEXT
        if not (request.continue_final_message and self.abilities.reasoning):
            return ReasoningStart.TEXT
        parts = request.messages[-1].parts
        text = "".join(part.text for part in parts if isinstance(part, TextPart))
        if OPEN_TAG in text and CLOSE_TAG not in text:
            return ReasoningStart.OPEN
        return ReasoningStart.TEXT if text.strip() else ReasoningStart.OPTIONAL

    def _encode(self, rendered: str) -> list[int]:
        token_ids: list[int] = []
        for text, is_special in self._guard.split(rendered):
            if is_special:
                token_ids.append(self._tokenizer.special_tokens[text])
            else:
                token_ids += self._tokenizer.encode_plain(text)
        return token_ids
