"""From a conversation with decoded pictures to the token ids of its prompt.

Owns where pictures stand in a prompt and the keys under which they are cached. Must not know how pictures were
decoded or how a template works.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from dataclasses import dataclass
import hashlib

from inference_service.domain import ChatMessage, ChatRequest, TextPart
from inference_service.engine.types import ImageSpan
from inference_service.errors import InternalError
from inference_service.media.decode import ProcessedPicture
from inference_service.models.spec import ModelSpec
from inference_service.text.guard import SpecialTokenGuard
from inference_service.text.template import ChatTemplate
from inference_service.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt for the engine.

    Attributes:
        token_ids: A placeholder id for every token of a picture.
        images: Pictures in order.
    """

    token_ids: tuple[int, ...]
    images: tuple[ImageSpan, ...]


class PromptBuilder:
    """Builds the prompts of one model."""

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate, spec: ModelSpec, revision: bytes = b""
    ) -> None:
        """Takes what belongs to the model.

        Args:
            tokenizer: The model's.
            template: The model's.
            spec: For the id of the placeholder.
            revision: Changes with the weights; part of every picture's key.

        Raises:
            ValueError: The placeholder is no special token of the tokenizer: users could write it.
        """
        if spec.image_token_id not in tokenizer.special_ids:
            raise ValueError("tokenizer.json: image_token_id of config.json is no special token")
        self._tokenizer = tokenizer
        self._template = template
        self._placeholder = spec.image_token_id
        self._revision = revision
        self._guard = SpecialTokenGuard(tokenizer.special_tokens)

    def build(self, request: ChatRequest, pictures: Sequence[ProcessedPicture]) -> Prompt:
        """Renders, tokenises and makes room for the pictures. Takes milliseconds: not for the event loop.

        Args:
            request: The conversation.
            pictures: Its pictures, decoded, in order of appearance.

        Raises:
            InvalidArgumentError: The template refuses the conversation.
            ContextLengthError: The prompt is absurdly long.
            InternalError: The template does not show every picture once.
        """
        rendered = self._template.render(
            [self._protected(message) for message in request.messages],
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            enable_thinking=request.enable_thinking,
        )
        token_ids = self._encode(rendered)
        if token_ids.count(self._placeholder) != len(pictures):
            raise InternalError("The model's chat template does not show every picture once.")
        return self._with_pictures(token_ids, pictures, request.cache_salt)

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

    def _with_pictures(
        self, token_ids: Sequence[int], pictures: Sequence[ProcessedPicture], cache_salt: bytes
    ) -> Prompt:
        """Repeats each placeholder once for every token of its picture."""
        expanded: list[int] = []
        spans: list[ImageSpan] = []
        offset = 0
        waiting = iter(pictures)
        for token_id in token_ids:
            if token_id != self._placeholder:
                expanded.append(token_id)
                continue
            picture = next(waiting)
            span = ImageSpan(
                key=self._key(picture, cache_salt),
                start=len(expanded),
                num_tokens=picture.num_tokens,
                grid=picture.grid,
                height=picture.height,
                width=picture.width,
                pixel_offset=offset,
            )
            spans.append(span)
            offset += span.pixel_bytes
            expanded += [token_id] * picture.num_tokens
        return Prompt(token_ids=tuple(expanded), images=tuple(spans))

    def _key(self, picture: ProcessedPicture, cache_salt: bytes) -> bytes:
        # Digests have a fixed length, and the revision's is told: no two inputs run into the same bytes.
        head = picture.digest + len(self._revision).to_bytes(4, "big") + self._revision
        return hashlib.sha256(head + cache_salt).digest()
