"""Turns a request and its prepared media into the prompt for the engine: renders and tokenises its text."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from inference_service.domain import ImageInfo, Request, TokenUsage
from inference_service.media.prepare import PreparedMedia
from inference_service.text.prompt import Prompt, PromptBuilder


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedPrompt:
    """A prompt for the engine.

    Attributes:
        prompt: Token ids and the positions of images.
        pixels: RGB uint8 of the images, in order.
        infos: Sizes and token count of each image, in order.
        usage: Tokens of the prompt.
    """

    prompt: Prompt
    pixels: tuple[bytes | memoryview, ...]
    infos: tuple[ImageInfo, ...]
    usage: TokenUsage


async def prepare_prompt(
    request: Request, media: PreparedMedia, builder: PromptBuilder
) -> PreparedPrompt:
    """Builds the prompt of a request.

    Raises:
        ServiceError: The prompt is invalid; the error names the field.
    """
    # Rendering and tokenising a long prompt takes milliseconds and must not block the event loop (CVE-2025-62426).
    prompt = await asyncio.to_thread(builder.build, request, media.images)
    media_tokens = sum(image.num_tokens for image in prompt.images)
    return PreparedPrompt(
        prompt=prompt,
        pixels=tuple(image.pixels for image in media.images),
        infos=media.infos,
        usage=TokenUsage(
            prompt_tokens=len(prompt.token_ids),
            image_tokens=media_tokens - media.video_tokens,
            video_tokens=media.video_tokens,
        ),
    )
