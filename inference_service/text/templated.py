"""Conversations written by the model's Jinja template.

Owns the way from messages over the rendered string to token ids in which users cannot write special tokens. Must not
know pictures beyond their placeholder.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

from inference_service.domain import ChatMessage, ChatRequest, TextPart
from inference_service.text.guard import SpecialTokenGuard
from inference_service.text.prompt import WrittenChat
from inference_service.text.template import ChatTemplate
from inference_service.text.tokenizer import Tokenizer


class TemplatedChat:
    """The chat format of a model that comes with a template."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, *, placeholder: int) -> None:
        """Takes what belongs to the model.

        Args:
            tokenizer: The model's.
            template: The model's.
            placeholder: Id that the template writes for a picture.

        Raises:
            ValueError: The placeholder is no special token of the tokenizer: users could write it.
        """
        if placeholder not in tokenizer.special_ids:
            raise ValueError("tokenizer.json: image_token_id of config.json is no special token")
        self._tokenizer = tokenizer
        self._template = template
        self._guard = SpecialTokenGuard(tokenizer.special_tokens)

    def write(self, request: ChatRequest) -> WrittenChat:
        """See `ChatFormat.write`."""
        rendered = self._template.render(
            [self._protected(message) for message in request.messages],
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            enable_thinking=request.enable_thinking,
        )
        return WrittenChat(token_ids=self._encode(rendered))

    def raw_places(self, token_ids: Sequence[int], field: str) -> Sequence[int]:
        """See `ChatFormat.raw_places`: the placeholder itself."""
        del field
        return token_ids

    def _protected(self, message: ChatMessage) -> ChatMessage:
        parts = tuple(
            TextPart(text=self._guard.protect(part.text)) if isinstance(part, TextPart) else part
            for part in message.parts
        )
        return dataclasses.replace(message, parts=parts)

    def _encode(self, rendered: str) -> list[int]:
        token_ids: list[int] = []
        for text, is_special in self._guard.split(rendered):
            if is_special:
                token_ids.append(self._tokenizer.special_tokens[text])
            else:
                token_ids += self._tokenizer.encode_plain(text)
        return token_ids
