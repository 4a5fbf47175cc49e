"""Decodes the images of requests in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from inference_service.media.decode import decode_image, decode_video
from inference_service.media.images import DecodeLimits, FrameSpec, ProcessedImage
from inference_service.model_spec import ImagePolicy


class ImageDecoder:
    """Decodes images in threads; Pillow releases the GIL while decoding."""

    def __init__(self, limits: DecodeLimits, *, workers: int) -> None:
        self._limits = limits
        self._threads = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="decode")

    async def decode(
        self, data: bytes, *, policy: ImagePolicy, min_pixels: int, max_pixels: int, field: str
    ) -> ProcessedImage:
        """`decode_image` in a worker thread."""
        return await asyncio.get_running_loop().run_in_executor(
            self._threads,
            lambda: decode_image(
                data,
                policy=policy,
                min_pixels=min_pixels,
                max_pixels=max_pixels,
                limits=self._limits,
                field=field,
            ),
        )

    async def decode_video(
        self, files: Sequence[bytes], fields: Sequence[str], spec: FrameSpec
    ) -> tuple[ProcessedImage, ...]:
        """`decode_video` in a worker thread."""
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: decode_video(files, fields, spec, self._limits)
        )

    def close(self) -> None:
        """Ends the threads; images that are still queued are dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)
