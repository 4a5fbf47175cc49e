"""Renders conversations to token ids with the model's Jinja template; user text contains no special tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses

from inference_service.domain import ChatMessage, ChatRequest, TextPart, VideoPart
from inference_service.text.guard import SpecialTokenGuard
from inference_service.text.jinja_template import JinjaTemplate
from inference_service.text.prompt import WrittenChat, refuse_names
from inference_service.text.tokenizer import Tokenizer


class JinjaChat:
    """The chat format of a model with a Jinja template."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: JinjaTemplate,
        *,
        placeholder: int,
        write_videos: Callable[[str, Sequence[VideoPart]], str] | None = None,
    ) -> None:
        """Takes the parts of the model.

        Args:
            tokenizer: The model's tokenizer.
            template: The model's template.
            placeholder: Id of the template's placeholder for an image.
            write_videos: Completes the videos of a rendered conversation, given in order; None = complete as rendered.

        Raises:
            ValueError: The placeholder is not a special token of the tokenizer, so that users could write it.
        """
        if placeholder not in tokenizer.special_ids:
            raise ValueError("tokenizer.json: image_token_id of config.json is not a special token")
        self._tokenizer = tokenizer
        self._template = template
        self._write_videos = write_videos
        self._guard = SpecialTokenGuard(tokenizer.special_tokens)
        self._roles_with_names = template.roles_with_names()

    def write(self, request: ChatRequest) -> WrittenChat:
        """See `ChatFormat.write`."""
        refuse_names(request.messages, rendered=self._roles_with_names)
        rendered = self._template.render(
            [self._protected(message) for message in request.messages],
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            enable_thinking=request.enable_thinking,
        )
        if self._write_videos is not None:
            videos = [part for part in request.media if isinstance(part, VideoPart)]
            rendered = self._write_videos(rendered, videos)
        return WrittenChat(token_ids=self._encode(rendered))

    def with_placeholders(self, token_ids: Sequence[int], field: str) -> Sequence[int]:
        """See `ChatFormat.with_placeholders`: such prompts already have placeholders."""
        del field
        return token_ids

    def _protected(self, message: ChatMessage) -> ChatMessage:
        parts = tuple(
            TextPart(text=self._guard.protect(part.text)) if isinstance(part, TextPart) else part
            for part in message.parts
        )
        return dataclasses.replace(message, parts=parts, name=self._guard.protect(message.name))

    def _encode(self, rendered: str) -> list[int]:
        token_ids: list[int] = []
        for text, is_special in self._guard.split(rendered):
            if is_special:
                token_ids.append(self._tokenizer.special_tokens[text])
            else:
                token_ids += self._tokenizer.encode_plain(text)
        return token_ids
