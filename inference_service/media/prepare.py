"""Prepares the images and videos of a request: fetches, decodes, resizes and checks them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
import functools
from typing import Final, TypeVar

from inference_service.domain import ImageInfo, ImagePart, Media, Request, VideoPart
from inference_service.errors import (
    ImageTooLargeError,
    TooManyImagesError,
    UnsupportedParameterError,
)
from inference_service.media.decoder import Allowance, ImageDecoder
from inference_service.media.fetch import MediaFetcher
from inference_service.media.file_budget import FileBudget
from inference_service.media.geometry import pixel_budget
from inference_service.media.images import FrameSpec, ProcessedImage
from inference_service.media.measuring import measured_fetch
from inference_service.media.policy import FetchPolicy
from inference_service.media.turn import my_turn
from inference_service.model_spec import MediaRules
from inference_service.settings import ServiceSettings


_FRAMES_AT_ONCE: Final = 8
_ROOM_TIMEOUT_S: Final = 45.0
"""How long the reading of a file may stand still for lack of memory; many hosts end the connection after 60 s."""
_MAX_VIDEO_BYTES: Final = 64 * 2**20
"""Maximum total size of a video's files, which are all in memory before the first is decoded."""

T = TypeVar("T")
_Decode = Callable[[], Coroutine[None, None, tuple[ProcessedImage, ...]]]


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


@dataclass(frozen=True, slots=True)
class _RequestMedia:
    """The media of one request while they are prepared.

    Attributes:
        request: The request.
        allowance: What decoding may still cost.
        fetch: Fetches a URL for it.
        decoding: The decoding of each image and video, by its files and limits.
    """

    request: Request
    allowance: Allowance
    fetch: Callable[..., Awaitable[bytes]]
    decoding: dict[Hashable, asyncio.Future[tuple[ProcessedImage, ...]]] = field(
        default_factory=dict
    )

    async def once(self, key: Hashable, decode: _Decode) -> tuple[ProcessedImage, ...]:
        """The result of decoding, which is begun only for the first of equal keys."""
        if key not in self.decoding:
            self.decoding[key] = asyncio.ensure_future(_in_turn(decode))
            self.decoding[key].add_done_callback(_retrieve)
        return await asyncio.shield(self.decoding[key])

    def cancel(self) -> None:
        """Gives up whatever is not decoded yet."""
        for decoding in self.decoding.values():
            decoding.cancel()
        self.decoding.clear()


async def _in_turn(decode: _Decode) -> tuple[ProcessedImage, ...]:
    async with my_turn():
        return await decode()


async def _all(steps: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """The results of steps that are done at the same time; when one fails, the others are given up."""
    tasks = [asyncio.ensure_future(step) for step in steps]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        # An error refers to these frames, and they to it: its files would stay until the next collection.
        tasks.clear()


def _retrieve(decoding: asyncio.Future[tuple[ProcessedImage, ...]]) -> None:
    """Takes note of an error: the request may have ended with another one."""
    if not decoding.cancelled():
        decoding.exception()


class MediaPreparer:
    """Prepares the media of requests, a bounded number of files at a time."""

    def __init__(
        self,
        fetcher: MediaFetcher,
        decoder: ImageDecoder,
        spec: MediaRules,
        *,
        max_tokens: int,
        files: FileBudget,
    ) -> None:
        """Takes the parts and the limits.

        Args:
            fetcher: Fetches images from URLs.
            decoder: Decodes and resizes images.
            spec: The model, with its image policy.
            max_tokens: Maximum tokens of one image or video: the size of the engine's encoder cache.
            files: Bounds the fetched files in memory.
        """
        self._fetcher = fetcher
        self._decoder = decoder
        self._spec = spec
        self._max_tokens = max_tokens
        self._files = files

    @classmethod
    def from_settings(cls, settings: ServiceSettings, spec: MediaRules) -> MediaPreparer:
        """A preparer with the operator's limits."""
        return cls(
            MediaFetcher(FetchPolicy.from_settings(settings)),
            ImageDecoder.from_settings(settings),
            spec,
            max_tokens=settings.encoder_cache_tokens,
            files=FileBudget(settings.media_buffer_mib * 2**20, wait_s=_ROOM_TIMEOUT_S),
        )

    def start(self) -> None:
        """Starts the decode workers; call it in the event loop's thread."""
        self._decoder.start()

    async def close(self) -> None:
        """Kills the decode workers, and ends the lookups of names."""
        self._decoder.close()
        await self._fetcher.close()

    def max_pixel_bytes(self, request: Request) -> int:
        """Maximum bytes of the processed pixels of a request: of larger images it is refused."""
        policy = self._spec.image_policy
        if policy.square_side is not None:
            return 3 * policy.square_side**2 * len(request.media)
        if policy.as_decoded:
            return 3 * policy.max_pixels * len(request.media)
        of_tokens = self._max_tokens * policy.pixel_step**2
        image, video = min(policy.max_pixels, of_tokens), of_tokens * policy.temporal_patch_size
        return 3 * sum(image if isinstance(part, ImagePart) else video for part in request.media)

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
        with self._files.of_request(caller) as files:
            fetch = functools.partial(self._fetcher.fetch, caller=caller, files=files)
            work = _RequestMedia(request, self._decoder.allowance(caller), fetch)
            try:
                # All files first: whoever waits for a slow host has no place, memory or worker that others wait for.
                fetched = await _all(self._fetched(part, work) for part in media)
                processed = await _all(decode() for decode in fetched)
            finally:
                work.cancel()
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

    async def _fetched(self, part: Media, work: _RequestMedia) -> _Decode:
        """What decodes an image or a video, whose files are in memory."""
        if isinstance(part, VideoPart):
            return await self._video(part, work)
        return await self._image(part, work)

    async def _image(self, part: ImagePart, work: _RequestMedia) -> _Decode:
        request = work.request
        budget = pixel_budget(
            self._spec.image_policy,
            part.detail,
            request.min_pixels if part.min_pixels is None else part.min_pixels,
            request.max_pixels if part.max_pixels is None else part.max_pixels,
            field=part.field,
        )
        rejects = (
            request.rejects_oversized if part.rejects_oversized is None else part.rejects_oversized
        )
        data = await _file(part, work)

        async def decode() -> tuple[ProcessedImage, ...]:
            image = await self._decoder.decode(
                data,
                work.allowance,
                policy=self._spec.image_policy,
                min_pixels=budget[0],
                max_pixels=budget[1],
                field=part.field,
                rejects_oversized=rejects,
            )
            return (image,)

        return functools.partial(work.once, (data, budget, rejects), decode)

    async def _video(self, part: VideoPart, work: _RequestMedia) -> _Decode:
        spec = self._spec
        if spec.video is None:
            raise UnsupportedParameterError(spec.no_videos, field=part.field)
        files: list[bytes] = []
        for start in range(0, len(part.frames), _FRAMES_AT_ONCE):
            some = part.frames[start : start + _FRAMES_AT_ONCE]
            files += await _all(_file(frame, work) for frame in some)
            if sum(map(len, files)) > _MAX_VIDEO_BYTES:
                raise ImageTooLargeError(
                    f"The frames of the video have more than {_MAX_VIDEO_BYTES} bytes in total, the maximum;"
                    " send fewer or smaller frames.",
                    field=part.field,
                    metadata={"max_bytes": str(_MAX_VIDEO_BYTES)},
                )
        fields = [frame.field for frame in part.frames]
        frame_spec = FrameSpec(policy=spec.image_policy, video=spec.video, fps=part.fps)

        async def decode() -> tuple[ProcessedImage, ...]:
            return await self._decoder.decode_video(
                files, fields, frame_spec, work.allowance, field=part.field
            )

        return functools.partial(work.once, (tuple(files), part.fps), decode)

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


async def _file(part: ImagePart, work: _RequestMedia) -> bytes:
    if part.data is not None:
        return part.data
    return await measured_fetch(work.fetch(part.uri or "", field=part.field))


def _info(image: ProcessedImage, part: ImagePart) -> ImageInfo:
    return ImageInfo(
        original_width=image.original_width,
        original_height=image.original_height,
        processed_width=image.width,
        processed_height=image.height,
        tokens=image.num_tokens,
        uuid=part.uuid,
    )
