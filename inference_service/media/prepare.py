"""Prepares the images and videos of a request: fetches, decodes, resizes and checks them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from inference_service.domain import ImageInfo, ImagePart, Media, Request, VideoPart
from inference_service.errors import (
    ImageTooLargeError,
    TooManyImagesError,
    UnsupportedParameterError,
)
from inference_service.media.decode import DecodeLimits, FrameSpec, ImageDecoder, ProcessedImage
from inference_service.media.fetch import FetchPolicy, MediaFetcher
from inference_service.media.geometry import pixel_budget
from inference_service.media.turn import my_turn
from inference_service.model_spec import ModelSpec
from inference_service.settings import ServiceSettings


_FETCHES_PER_WORKER: Final = 8
_FRAMES_AT_ONCE: Final = 8
_MAX_VIDEO_BYTES: Final = 64 * 2**20
"""Maximum total size of a video's files, which are all in memory before the first is decoded."""


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
        max_files: int,
    ) -> None:
        """Takes the parts and the limits.

        Args:
            fetcher: Fetches images from URLs.
            decoder: Decodes and resizes images.
            spec: The model, with its image policy.
            max_tokens: Maximum tokens of one image or video: the size of the engine's encoder cache.
            max_files: Maximum number of fetched files in memory that are not decoded yet.
        """
        self._fetcher = fetcher
        self._decoder = decoder
        self._spec = spec
        self._max_tokens = max_tokens
        self._files = asyncio.Semaphore(max_files)

    @classmethod
    def from_settings(cls, settings: ServiceSettings, spec: ModelSpec) -> MediaPreparer:
        """A preparer with the operator's limits."""
        return cls(
            MediaFetcher(FetchPolicy.from_settings(settings)),
            ImageDecoder(DecodeLimits.from_settings(settings), workers=settings.media_workers),
            spec,
            max_tokens=settings.encoder_cache_tokens,
            max_files=settings.media_workers * _FETCHES_PER_WORKER,
        )

    def close(self) -> None:
        """Ends the worker threads."""
        self._decoder.close()

    def max_pixel_bytes(self, request: Request) -> int:
        """Maximum bytes of the processed pixels of a request: of larger images it is refused."""
        policy = self._spec.image_policy
        if policy.square_side is not None:
            return 3 * policy.square_side**2 * len(request.media)
        of_tokens = self._max_tokens * policy.pixel_step**2
        image, video = min(policy.max_pixels, of_tokens), of_tokens * policy.temporal_patch_size
        return 3 * sum(image if isinstance(part, ImagePart) else video for part in request.media)

    async def prepare(self, request: Request) -> PreparedMedia:
        """Fetches, decodes and resizes all images and videos of a request.

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
        tasks = [asyncio.ensure_future(self._processed(part, request)) for part in media]
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

    async def _processed(self, part: Media, request: Request) -> tuple[ProcessedImage, ...]:
        if isinstance(part, VideoPart):
            return await self._video(part)
        return (await self._image(part, request),)

    async def _image(self, part: ImagePart, request: Request) -> ProcessedImage:
        policy = self._spec.image_policy
        min_pixels, max_pixels = pixel_budget(
            policy,
            part.detail,
            request.min_pixels if part.min_pixels is None else part.min_pixels,
            request.max_pixels if part.max_pixels is None else part.max_pixels,
            field=part.field,
        )
        async with self._files:
            data = part.data
            if data is None:
                data = await self._fetcher.fetch(part.uri or "", field=part.field)
            async with my_turn():
                return await self._decoder.decode(
                    data,
                    policy=policy,
                    min_pixels=min_pixels,
                    max_pixels=max_pixels,
                    field=part.field,
                )

    async def _video(self, part: VideoPart) -> tuple[ProcessedImage, ...]:
        spec = self._spec
        if spec.video is None:
            raise UnsupportedParameterError(
                "Videos are not supported by this model.", field=part.field
            )
        files: list[bytes] = []
        for start in range(0, len(part.frames), _FRAMES_AT_ONCE):
            some = part.frames[start : start + _FRAMES_AT_ONCE]
            files += await asyncio.gather(*map(self._frame_file, some))
            if sum(map(len, files)) > _MAX_VIDEO_BYTES:
                raise ImageTooLargeError(
                    f"The frames of the video have more than {_MAX_VIDEO_BYTES} bytes in total, the maximum;"
                    " send fewer or smaller frames.",
                    field=part.field,
                    metadata={"max_bytes": str(_MAX_VIDEO_BYTES)},
                )
        fields = [frame.field for frame in part.frames]
        frame_spec = FrameSpec(policy=spec.image_policy, video=spec.video, fps=part.fps)
        async with my_turn(), self._files:
            return await self._decoder.decode_video(files, fields, frame_spec)

    async def _frame_file(self, part: ImagePart) -> bytes:
        """The file of one frame."""
        if part.data is not None:
            return part.data
        async with self._files:
            return await self._fetcher.fetch(part.uri or "", field=part.field)

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


def _info(image: ProcessedImage, part: ImagePart) -> ImageInfo:
    return ImageInfo(
        original_width=image.original_width,
        original_height=image.original_height,
        processed_width=image.width,
        processed_height=image.height,
        tokens=image.num_tokens,
        uuid=part.uuid,
    )
