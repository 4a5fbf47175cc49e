"""Builds engine prompts: token ids with the places of images, and the keys under which images are cached."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
import hashlib
from typing import Protocol

from inference_service.domain import ChatMessage, ChatRequest, Request, Role, TextCompletionRequest
from inference_service.engine_protocol.messages import ImageSpan
from inference_service.errors import (
    ContextLengthError,
    InternalError,
    InvalidArgumentError,
    UnsupportedParameterError,
)
from inference_service.media.decode import ProcessedImage
from inference_service.text.jinja_template import MAX_CHARACTERS
from inference_service.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt for the engine.

    Attributes:
        token_ids: A placeholder id for every token of an image.
        images: Images in order.
    """

    token_ids: tuple[int, ...]
    images: tuple[ImageSpan, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenChat:
    """A conversation as its family writes it.

    Attributes:
        token_ids: One placeholder for every image.
        forgotten_images: So many of the first images stood in turns that were left out.
    """

    token_ids: Sequence[int]
    forgotten_images: int = 0


class ChatFormat(Protocol):
    """How a family writes a conversation."""

    def write(self, request: ChatRequest) -> WrittenChat:
        """The conversation as token ids. Takes milliseconds: not for the event loop.

        Raises:
            InvalidArgumentError: The model has no way to write this conversation.
            UnsupportedParameterError: A message has a name, which the format does not write.
            ContextLengthError: The prompt is absurdly long.
        """

    def raw_places(self, token_ids: Sequence[int], field: str) -> Sequence[int]:
        """A raw prompt with one placeholder for every image, however such prompts spell an image.

        Args:
            token_ids: The prompt.
            field: Its path in the request, for errors.

        Raises:
            InvalidArgumentError: An image is spelled badly.
        """


def refuse_names(messages: Sequence[ChatMessage], *, rendered: Container[Role] = ()) -> None:
    """Refuses names of speakers that a prompt would not contain.

    Args:
        messages: The conversation.
        rendered: The roles whose messages are written with their name.

    Raises:
        UnsupportedParameterError: A message of another role has a name.
    """
    for index, message in enumerate(messages):
        if message.name and message.role not in rendered:
            raise UnsupportedParameterError(
                f"The chat format of this model does not render the name of {message.role.value} messages:"
                " leave it out, or write the name into the message's text.",
                field=f"spec.messages[{index}].name",
            )


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
        """Takes what belongs to the model.

        Args:
            tokenizer: The model's.
            chat: The model's.
            placeholder: Id that stands for an image in what `chat` writes, and in raw prompts.
            ends: Ids around the placeholder that are the first and the last token of the image; None = the
                placeholder alone is the image.
            video_placeholder: Id that stands for a video, or for a part of one.
            revision: Changes with the weights; part of every image's key.
        """
        self._tokenizer = tokenizer
        self._chat = chat
        self._placeholder = placeholder
        self._video_placeholder = video_placeholder
        self._mark = [placeholder] if ends is None else [ends[0], placeholder, ends[1]]
        self._revision = revision

    def build(self, request: Request, images: Sequence[ProcessedImage]) -> Prompt:
        """Writes the prompt and makes room for the images. Takes milliseconds: not for the event loop.

        Args:
            request: The conversation, or the raw prompt.
            images: Its images, decoded, in order of appearance.

        Raises:
            InvalidArgumentError: The model has no way to write this conversation, or a raw prompt does not have one
                place for each image.
            ContextLengthError: The prompt is absurdly long.
            InternalError: An image or video does not stand in the prompt once.
        """
        if isinstance(request, TextCompletionRequest):
            written = self._raw(request)
        else:
            written = self._chat.write(request)
            kinds = [image.is_video for image in images[written.forgotten_images :]]
            if [self._is_video(written.token_ids[i]) for i in self._places(written)] != kinds:
                raise InternalError("The model's chat template does not show every image once.")
        return self._with_images(written, images, request.cache_salt)

    def _is_video(self, token_id: int) -> bool:
        return token_id == self._video_placeholder

    def _raw(self, request: TextCompletionRequest) -> WrittenChat:
        """A raw prompt is not user text in a template: control tokens spelled in it are control tokens."""
        prompt = request.prompt
        if isinstance(prompt, str) and len(prompt) > MAX_CHARACTERS:
            raise ContextLengthError(
                "The prompt does not fit the context window.", field=request.prompt_field
            )
        raw_ids = self._tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        written = WrittenChat(token_ids=self._chat.raw_places(raw_ids, request.prompt_field))
        places, images = self._places(written), len(request.images)
        if len(places) != images or any(self._is_video(written.token_ids[i]) for i in places):
            raise InvalidArgumentError(
                f"The prompt has {len(places)} places for images and videos, the request has"
                f" {images} images.",
                field=request.prompt_field,
            )
        return written

    def _places(self, written: WrittenChat) -> list[int]:
        """Where the placeholders of images and videos stand."""
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
        forgotten = written.forgotten_images
        offset = sum(len(image.pixels) for image in images[:forgotten])
        ends = len(self._mark) - 1
        places = self._places(written)
        waiting = dict(zip(places, images[forgotten:], strict=True))
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
        return Prompt(token_ids=tuple(expanded), images=tuple(spans))

    def _key(self, image: ProcessedImage, cache_salt: bytes) -> bytes:
        # Digests have a fixed length, and the revision's length is hashed: no two inputs give the same bytes.
        head = image.digest + len(self._revision).to_bytes(4, "big") + self._revision
        return hashlib.sha256(head + cache_salt).digest()
