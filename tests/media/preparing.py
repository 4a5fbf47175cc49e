"""Media to prepare without hosts and workers: files that name their URL, images that name their file."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from inference_service.domain import ChatMessage, ChatRequest, ImagePart, Part, Role
from inference_service.errors import ImageFetchError, InvalidImageError
from inference_service.media.decoder import Allowance, ImageDecoder
from inference_service.media.fetch import MediaFetcher
from inference_service.media.file_budget import FetchedFiles, FileBudget
from inference_service.media.images import FrameSpec, ProcessedImage
from inference_service.media.prepare import MediaPreparer
from inference_service.model_spec import ModelSpec


class CountingFetcher:
    """Files of 3 bytes that name their URL; knows how many were fetched at a time."""

    def __init__(self) -> None:
        self.at_once = self.most_at_once = 0
        self.callers: set[str] = set()

    async def fetch(
        self, url: str, *, field: str, caller: str = "", files: FetchedFiles | None = None
    ) -> bytes:
        self.callers.add(caller)
        if files is not None:
            await files.take(3, field)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(3600 if url.startswith("hangs") else 0.001)
        finally:
            self.at_once -= 1
        if url == "bad":
            raise ImageFetchError("It is not there.", field=field)
        return url.encode()


class NamingDecoder:
    """Images whose digest is the file."""

    def __init__(self, tokens: int = 4) -> None:
        self.tokens = tokens
        self.cancelled = 0
        self.decoded: list[bytes] = []
        self.at_once = 0
        self.videos = 0
        self.rejects: list[object] = []

    def allowance(self, caller: str) -> Allowance:
        return Allowance(pixels=1, seconds=1.0, caller=caller)

    async def decode(self, data: bytes, _: Allowance, **options: object) -> ProcessedImage:
        self.decoded.append(data)
        self.rejects.append(options["rejects_oversized"])
        self.at_once += 1
        try:
            await asyncio.sleep(3600 if data == b"slow" else 0.001)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.at_once -= 1
        if data == b"broken":
            raise InvalidImageError("It is broken.", field=str(options["field"]))
        return image_of(data, self.tokens)

    async def decode_video(
        self,
        files: Sequence[bytes],
        fields: Sequence[str],
        spec: FrameSpec,
        _: Allowance,
        *,
        field: str,
    ) -> tuple[ProcessedImage, ...]:
        assert len(files) == len(fields)
        assert field == "video"
        self.videos += 1
        assert spec.fps > 0
        return tuple(replace(image_of(file, self.tokens), is_video=True) for file in files[::2])


def image_of(data: bytes, tokens: int) -> ProcessedImage:
    return ProcessedImage(
        pixels=b"",
        height=2,
        width=4,
        original_height=1,
        original_width=2,
        grid=(1, 2, 4),
        num_tokens=tokens,
        digest=data,
    )


def request_of(*parts: Part) -> ChatRequest:
    message = ChatMessage(role=Role.USER, parts=parts)
    return ChatRequest(request_id="r", model="m", messages=(message,))


def url(name: str) -> ImagePart:
    return ImagePart(uri=name, field=f"image {name}", uuid=name)


def preparer(
    spec: ModelSpec, *, tokens: int = 4, max_tokens: int = 4, file_bytes: int = 2**20
) -> tuple[MediaPreparer, CountingFetcher, NamingDecoder]:
    fetcher, decoder = CountingFetcher(), NamingDecoder(tokens)
    made = MediaPreparer(
        cast("MediaFetcher", fetcher),
        cast("ImageDecoder", decoder),
        spec,
        max_tokens=max_tokens,
        files=FileBudget(file_bytes, wait_s=10),
    )
    return made, fetcher, decoder
