"""Builds prompts for the engine: token ids, the positions of images, and their cache keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import hashlib
from typing import Protocol

from inference_service.domain import ChatRequest, Request, TextCompletionRequest
from inference_service.engine_protocol.messages import ImageSpan, PromptSource
from inference_service.errors import InternalError, InvalidArgumentError
from inference_service.media.images import ProcessedImage
from inference_service.model_spec import ToolNotation
from inference_service.text.limits import MAX_CHARACTERS, too_many_characters
from inference_service.text.output.reasoning import ReasoningStart
from inference_service.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt for the engine.

    Attributes:
        token_ids: Token ids, with a placeholder for every token of an image.
        images: Images in order.
        reasoning: Whether the answer begins with reasoning.
        source: What an engine that prepares its prompts itself made it of; None = it was made here.
    """

    token_ids: tuple[int, ...]
    images: tuple[ImageSpan, ...]
    reasoning: ReasoningStart = ReasoningStart.TEXT
    source: PromptSource | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenChat:
    """A conversation in the chat format of a family.

    Attributes:
        token_ids: Token ids, with one placeholder for every image.
        dropped_images: Number of images in dropped turns; they are the first images.
        reasoning: Whether the answer begins with reasoning.
    """

    token_ids: Sequence[int]
    dropped_images: int = 0
    reasoning: ReasoningStart = ReasoningStart.TEXT


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatAbilities:
    """What a chat format has besides text and images.

    Attributes:
        tools: How calls of tools are written; NONE = it has no tools.
        reasoning: Answers may begin with reasoning.
        thinking_switch: A request may switch reasoning on and off.
    """

    tools: ToolNotation = ToolNotation.NONE
    reasoning: bool = False
    thinking_switch: bool = False


class ChatFormat(Protocol):
    """The chat format of a family."""

    @property
    def abilities(self) -> ChatAbilities:
        """What it has besides text and images."""

    def write(self, request: ChatRequest) -> WrittenChat:
        """The conversation as token ids. Takes milliseconds, so it must not run on the event loop.

        Raises:
            InvalidArgumentError: The format does not support this conversation.
            UnsupportedParameterError: The format would leave out a part of the conversation, or has no switch
                for thinking.
            ContextLengthError: The prompt has more than `MAX_CHARACTERS` characters.
        """

    def with_placeholders(self, token_ids: Sequence[int], field: str) -> Sequence[int]:
        """A text completion prompt with one placeholder for every image, in place of the family's notation.

        Args:
            token_ids: The prompt.
            field: Its path in the request, for errors.

        Raises:
            InvalidArgumentError: The notation of an image is malformed.
        """


class PromptBuilder:
    """Builds the prompts of one model."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat: ChatFormat,
        *,
        placeholder: int,
        ends: tuple[int, int] | None = None,
        video_placeholder: int | None = None,
        revision: bytes = b"",
    ) -> None:
        """Takes the parts of the model.

        Args:
            tokenizer: The model's tokenizer.
            chat: The model's chat format.
            placeholder: Placeholder id of an image in prompts.
            ends: Ids around the placeholder that are the first and the last token of the image; None = the image has
                only the placeholder.
            video_placeholder: Placeholder id of a video, or of a part of one.
            revision: A digest that changes with the weights; part of every image's key.
        """
        self._tokenizer = tokenizer
        self._chat = chat
        self._placeholder = placeholder
        self._video_placeholder = video_placeholder
        self._mark = [placeholder] if ends is None else [ends[0], placeholder, ends[1]]
        self._revision = revision

    @property
    def abilities(self) -> ChatAbilities:
        """Those of the model's chat format."""
        return self._chat.abilities

    def build(self, request: Request, images: Sequence[ProcessedImage]) -> Prompt:
        """Builds a prompt. Takes milliseconds, so it must not run on the event loop.

        Args:
            request: The conversation or the text completion.
            images: Its images, decoded, in order of appearance.

        Raises:
            InvalidArgumentError: The chat format does not support this conversation, or a text completion does not
                have one placeholder for each image.
            ContextLengthError: The prompt has more than `MAX_CHARACTERS` characters.
            InternalError: An image or video does not appear in the prompt exactly once.
        """
        if isinstance(request, TextCompletionRequest):
            written = self._text_completion(request)
        else:
            written = self._chat.write(request)
            kinds = [image.is_video for image in images[written.dropped_images :]]
            if [
                self._is_video(written.token_ids[i]) for i in self._placeholder_indices(written)
            ] != kinds:
                raise InternalError(
                    "The model's chat format did not render every image and video exactly once."
                )
        return self._with_images(written, images, request.cache_salt)

    def _is_video(self, token_id: int) -> bool:
        return token_id == self._video_placeholder

    def _text_completion(self, request: TextCompletionRequest) -> WrittenChat:
        """The prompt of a text completion; unlike in a chat, special tokens in its text are special tokens."""
        prompt = request.prompt
        if isinstance(prompt, str) and len(prompt) > MAX_CHARACTERS:
            raise too_many_characters("prompt", request.prompt_field)
        token_ids = self._tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        written = WrittenChat(
            token_ids=self._chat.with_placeholders(token_ids, request.prompt_field)
        )
        places, images = self._placeholder_indices(written), len(request.images)
        if len(places) != images or any(self._is_video(written.token_ids[i]) for i in places):
            raise InvalidArgumentError(
                f"The prompt has {len(places)} placeholders for images and videos, but the request has {images}"
                " images; write one image placeholder for each image.",
                field=request.prompt_field,
            )
        return written

    def _placeholder_indices(self, written: WrittenChat) -> list[int]:
        """The indices of the placeholders of images and videos."""
        token_ids = written.token_ids
        before = len(self._mark) // 2
        return [
            index
            for index, token_id in enumerate(token_ids)
            if self._is_video(token_id)
            or (
                token_id == self._placeholder
                and list(token_ids[max(0, index - before) : index + before + 1]) == self._mark
            )
        ]

    def _with_images(
        self, written: WrittenChat, images: Sequence[ProcessedImage], cache_salt: bytes
    ) -> Prompt:
        """Repeats each placeholder once for every token of its image."""
        expanded: list[int] = []
        spans: list[ImageSpan] = []
        dropped = written.dropped_images
        offset = sum(len(image.pixels) for image in images[:dropped])
        ends = len(self._mark) - 1
        places = self._placeholder_indices(written)
        waiting = dict(zip(places, images[dropped:], strict=True))
        for index, token_id in enumerate(written.token_ids):
            image = waiting.get(index)
            if image is None:
                expanded.append(token_id)
                continue
            span = ImageSpan(
                key=self._key(image, cache_salt),
                start=len(expanded) - ends // 2,
                num_tokens=image.num_tokens,
                grid=image.grid,
                height=image.height,
                width=image.width,
                pixel_offset=offset,
                frames=image.frames,
                time_step=image.time_step,
            )
            spans.append(span)
            offset += span.pixel_bytes
            expanded += [token_id] * (image.num_tokens - ends)
        return Prompt(token_ids=tuple(expanded), images=tuple(spans), reasoning=written.reasoning)

    def _key(self, image: ProcessedImage, cache_salt: bytes) -> bytes:
        # Digests have a fixed length and the revision's length is included: different inputs give different bytes.
        head = image.digest + len(self._revision).to_bytes(4, "big") + self._revision
        return hashlib.sha256(head + cache_salt).digest()
