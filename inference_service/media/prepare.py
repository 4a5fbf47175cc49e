"""Prepares the images and videos of a request: fetches, decodes, resizes and checks them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
import functools
from typing import Final

from inference_service.domain import ImageInfo, ImagePart, Media, Request, VideoPart
from inference_service.errors import (
    ImageTooLargeError,
    TooManyImagesError,
    UnsupportedParameterError,
)
from inference_service.media.decode import DecodeLimits, FrameSpec, ImageDecoder, ProcessedImage
from inference_service.media.fetch import MediaFetcher
from inference_service.media.file_budget import FileBudget
from inference_service.media.geometry import pixel_budget
from inference_service.media.policy import FetchPolicy
from inference_service.model_spec import ModelSpec
from inference_service.settings import ServiceSettings


_DECODES_PER_WORKER: Final = 8
_FRAMES_AT_ONCE: Final = 8
_MAX_VIDEO_BYTES: Final = 64 * 2**20
"""Maximum total size of a video's files, which are all in memory before the first is decoded."""


_Fetch = Callable[..., Awaitable[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedMedia:
    """The prepared images and videos of a request.

    Attributes:
        images: Images and videos in order; a video may be several items.
        infos: Sizes and tokens of each image; none for videos.
    """

    images: tuple[ProcessedImage, ...]
    infos: tuple[ImageInfo, ...]

    @property
    def video_tokens(self) -> int:
        """Placeholder tokens of the videos."""
        return sum(image.num_tokens for image in self.images if image.is_video)


class MediaPreparer:
    """Prepares the media of requests, a bounded number of files at a time."""

    def __init__(
        self,
        fetcher: MediaFetcher,
        decoder: ImageDecoder,
        spec: ModelSpec,
        *,
        max_tokens: int,
        max_decodes: int,
        files: FileBudget,
    ) -> None:
        """Takes the parts and the limits.

        Args:
            fetcher: Fetches images from URLs.
            decoder: Decodes and resizes images.
            spec: The model, with its image policy.
            max_tokens: Maximum tokens of one image or video: the size of the engine's encoder cache.
            max_decodes: Maximum number of images and videos that are decoded or wait for a worker.
            files: Bounds the fetched files in memory.
        """
        self._fetcher = fetcher
        self._decoder = decoder
        self._spec = spec
        self._max_tokens = max_tokens
        self._decodes = asyncio.Semaphore(max_decodes)
        self._files = files

    @classmethod
    def from_settings(cls, settings: ServiceSettings, spec: ModelSpec) -> MediaPreparer:
        """A preparer with the operator's limits."""
        return cls(
            MediaFetcher(FetchPolicy.from_settings(settings)),
            ImageDecoder(DecodeLimits.from_settings(settings), workers=settings.media_workers),
            spec,
            max_tokens=settings.encoder_cache_tokens,
            max_decodes=settings.media_workers * _DECODES_PER_WORKER,
            files=FileBudget(settings.media_buffer_mib * 2**20, wait_s=settings.media_timeout_s),
        )

    async def close(self) -> None:
        """Ends the worker threads, and the lookups of names."""
        self._decoder.close()
        await self._fetcher.close()

    async def prepare(self, request: Request, caller: str = "") -> PreparedMedia:
        """Fetches, decodes and resizes all images and videos of a request.

        Args:
            request: The request.
            caller: Who sent it; empty = unknown.

        Raises:
            ServiceError: One of them is invalid; the error names the field.
        """
        media = request.media
        max_images = self._spec.image_policy.max_images
        if max_images is not None and len(media) > max_images:
            raise TooManyImagesError(
                f"The request has {len(media)} images, but this model supports at most {max_images}.",
                field=request.prompt_field,
            )
        with self._files.of_request() as files:
            fetch = functools.partial(self._fetcher.fetch, caller=caller, files=files)
            tasks = [asyncio.ensure_future(self._processed(part, request, fetch)) for part in media]
            try:
                processed = await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
        for images, part in zip(processed, media, strict=True):
            self._check_tokens(images, part)
        return PreparedMedia(
            images=tuple(image for images in processed for image in images),
            infos=tuple(
                _info(images[0], part)
                for images, part in zip(processed, media, strict=True)
                if isinstance(part, ImagePart)
            ),
        )

    async def _processed(
        self, part: Media, request: Request, fetch: _Fetch
    ) -> tuple[ProcessedImage, ...]:
        if isinstance(part, VideoPart):
            return await self._video(part, fetch)
        return (await self._image(part, request, fetch),)

    async def _image(self, part: ImagePart, request: Request, fetch: _Fetch) -> ProcessedImage:
        policy = self._spec.image_policy
        min_pixels, max_pixels = pixel_budget(
            policy,
            part.detail,
            request.min_pixels if part.min_pixels is None else part.min_pixels,
            request.max_pixels if part.max_pixels is None else part.max_pixels,
            field=part.field,
        )
        data = await _file(part, fetch)
        async with self._decodes:
            return await self._decoder.decode(
                data, policy=policy, min_pixels=min_pixels, max_pixels=max_pixels, field=part.field
            )

    async def _video(self, part: VideoPart, fetch: _Fetch) -> tuple[ProcessedImage, ...]:
        spec = self._spec
        if spec.video is None:
            raise UnsupportedParameterError(
                "Videos are not supported by this model.", field=part.field
            )
        files: list[bytes] = []
        for start in range(0, len(part.frames), _FRAMES_AT_ONCE):
            some = part.frames[start : start + _FRAMES_AT_ONCE]
            files += await asyncio.gather(*(_file(frame, fetch) for frame in some))
            if sum(map(len, files)) > _MAX_VIDEO_BYTES:
                raise ImageTooLargeError(
                    f"The frames of the video have more than {_MAX_VIDEO_BYTES} bytes in total, the maximum;"
                    " send fewer or smaller frames.",
                    field=part.field,
                    metadata={"max_bytes": str(_MAX_VIDEO_BYTES)},
                )
        fields = [frame.field for frame in part.frames]
        frame_spec = FrameSpec(policy=spec.image_policy, video=spec.video, fps=part.fps)
        async with self._decodes:
            return await self._decoder.decode_video(files, fields, frame_spec)

    def _check_tokens(self, images: Sequence[ProcessedImage], part: Media) -> None:
        """Refuses media that exceed the encoder cache before the engine computes anything; names the field."""
        tokens = max(image.num_tokens for image in images)
        if tokens > self._max_tokens:
            what, advice = ("video", ", fewer frames") if images[0].is_video else ("image", "")
            raise ImageTooLargeError(
                f"The {what} has {tokens} tokens, but at most {self._max_tokens} are allowed (--encoder-cache-tokens): "
                f"send fewer pixels{advice}.",
                field=part.field,
                metadata={"tokens": str(tokens), "max_tokens": str(self._max_tokens)},
            )


async def _file(part: ImagePart, fetch: _Fetch) -> bytes:
    return await fetch(part.uri or "", field=part.field) if part.data is None else part.data


def _info(image: ProcessedImage, part: ImagePart) -> ImageInfo:
    return ImageInfo(
        original_width=image.original_width,
        original_height=image.original_height,
        processed_width=image.width,
        processed_height=image.height,
        tokens=image.num_tokens,
        uuid=part.uuid,
    )
