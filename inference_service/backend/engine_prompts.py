"""Prompts that the engine process makes, with the model's own processor: the front hands it texts and decoded media."""

from __future__ import annotations

from collections.abc import Sequence

from inference_service.backend.admission import AdmittedRequest
from inference_service.backend.prompts import PreparedPrompt, TextWorkers, num_characters
from inference_service.domain import ChatRequest, ImageInfo, Request, TokenUsage
from inference_service.engine_client.interface import PreparingEngine
from inference_service.engine_protocol.messages import PromptLayout, PromptMedia, PromptSource
from inference_service.errors import InvalidArgumentError, UnsupportedParameterError
from inference_service.media.images import ProcessedImage
from inference_service.media.prepare import PreparedMedia
from inference_service.text.jinja_chat import JinjaChat
from inference_service.text.output.reasoning import ReasoningStart
from inference_service.text.prompt import Prompt
from inference_service.text.tokenizer import Tokenizer


class EnginePrompts(TextWorkers):
    """`Prompts` that the engine prepares.

    Args:
        tokenizer: The model's.
        chat: Its chat format; None = it only completes text.
        engine: The engine.
    """

    def __init__(
        self, tokenizer: Tokenizer, chat: JinjaChat | None, engine: PreparingEngine
    ) -> None:
        super().__init__(tokenizer)
        self._chat = chat
        self._engine = engine

    async def prepare(
        self, request: Request, media: PreparedMedia, admitted: AdmittedRequest
    ) -> PreparedPrompt:
        """See `PromptWorkers.prepare`; an abort ends the wait for the engine.

        Raises:
            AbortedError: The request was aborted before the engine had its prompt.
        """
        caller = admitted.caller
        source, start = await self.run(
            num_characters(request), caller, lambda: self._source(request, media.images)
        )
        pixels = [image.pixels for image in media.images]
        try:
            async with admitted.abortable():
                layout = await self._engine.prepare(source, pixels, caller)
        except InvalidArgumentError as error:
            error.field = error.field or request.prompt_field
            raise
        infos = (
            _info(info, found)
            for info, found in zip(media.infos, _of_images(layout, media.images), strict=True)
        )
        videos = sum(
            found.num_tokens
            for found, image in zip(layout.media, media.images, strict=True)
            if image.is_video
        )
        return PreparedPrompt(
            prompt=Prompt(token_ids=layout.token_ids, images=(), reasoning=start, source=source),
            pixels=pixels,
            infos=tuple(infos),
            usage=TokenUsage(
                prompt_tokens=len(layout.token_ids),
                image_tokens=sum(found.num_tokens for found in layout.media) - videos,
                video_tokens=videos,
            ),
        )

    def _source(
        self, request: Request, images: Sequence[ProcessedImage]
    ) -> tuple[PromptSource, ReasoningStart]:
        """The prompt of a request, and whether the answer begins with reasoning."""
        media = _media(images)
        if isinstance(request, ChatRequest):
            if self._chat is None:
                raise UnsupportedParameterError(
                    "This model has no chat template: use a text completion.", field="spec.messages"
                )
            text, start = self._chat.render(request)
            return PromptSource(text=text, media=media, is_guarded=True), start
        prompt = request.prompt
        if isinstance(prompt, str):
            return PromptSource(text=prompt, media=media), ReasoningStart.TEXT
        if media:
            raise UnsupportedParameterError(
                "Token ids with images are not supported with --backend transformers: send the prompt as text.",
                field=request.prompt_field,
            )
        return PromptSource(token_ids=prompt), ReasoningStart.TEXT


def _media(images: Sequence[ProcessedImage]) -> tuple[PromptMedia, ...]:
    found: list[PromptMedia] = []
    offset = 0
    for image in images:
        one = PromptMedia(
            height=image.height,
            width=image.width,
            pixel_offset=offset,
            digest=image.digest,
            frames=image.frames,
            fps=1.0 / image.time_step if image.is_video else None,
        )
        found.append(one)
        offset += one.pixel_bytes
    return tuple(found)


def _of_images(
    layout: PromptLayout, images: Sequence[ProcessedImage]
) -> list[tuple[int, int, int]]:
    """(height, width, tokens) of each image, without the videos."""
    return [
        (found.height, found.width, found.num_tokens)
        for found, image in zip(layout.media, images, strict=True)
        if not image.is_video
    ]


def _info(info: ImageInfo, found: tuple[int, int, int]) -> ImageInfo:
    height, width, tokens = found
    return ImageInfo(
        original_width=info.original_width,
        original_height=info.original_height,
        processed_width=width,
        processed_height=height,
        tokens=tokens,
        uuid=info.uuid,
    )
