"""All media of a request together: bounds, order, and what happens to the rest when one fails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from inference_service.domain import (
    ChatMessage,
    ChatRequest,
    ImagePart,
    Part,
    Role,
    TextPart,
    VideoPart,
)
from inference_service.errors import (
    ImageFetchError,
    ImageTooLargeError,
    TooManyImagesError,
    UnsupportedParameterError,
)
from inference_service.families.registry import load_spec
from inference_service.media.decoder import Allowance, ImageDecoder
from inference_service.media.fetch import MediaFetcher
from inference_service.media.file_budget import FetchedFiles, FileBudget
from inference_service.media.images import FrameSpec, ProcessedImage
from inference_service.media.prepare import MediaPreparer
from inference_service.model_spec import ModelSpec
from tests.support.published_configs import published_files, write_files


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
            files.add(3)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(3600 if url == "hangs" else 0.001)
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

    def allowance(self) -> Allowance:
        return Allowance(pixels=1, seconds=1.0)

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


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    directory: Path = tmp_path_factory.mktemp("published")
    return load_spec(write_files(directory, published_files()))


def preparer(
    spec: ModelSpec, *, tokens: int = 4, max_tokens: int = 4
) -> tuple[MediaPreparer, CountingFetcher, NamingDecoder]:
    fetcher, decoder = CountingFetcher(), NamingDecoder(tokens)
    made = MediaPreparer(
        cast("MediaFetcher", fetcher),
        cast("ImageDecoder", decoder),
        spec,
        max_tokens=max_tokens,
        files=FileBudget(2**20, wait_s=10),
    )
    return made, fetcher, decoder


async def test_images_and_videos_keep_their_order_and_only_images_are_told_of(
    spec: ModelSpec,
) -> None:
    made, _, _ = preparer(spec)
    video = VideoPart(frames=tuple(map(url, "abcd")), field="video")
    media = await made.prepare(request_of(url("1"), TextPart(text="and"), video, url("2")))
    assert [image.digest for image in media.images] == [b"1", b"a", b"c", b"2"]
    assert [(info.uuid, info.tokens, info.processed_width) for info in media.infos] == [
        ("1", 4, 4),
        ("2", 4, 4),
    ]
    assert media.video_tokens == 8


async def test_fetches_are_counted_for_the_caller_and_its_request(spec: ModelSpec) -> None:
    made, fetcher, decoder = preparer(spec)
    task = asyncio.ensure_future(made.prepare(request_of(url("slow"), url("1")), "key"))
    for _ in range(2000):
        if decoder.at_once and not fetcher.at_once:
            break
        await asyncio.sleep(0.01)
    assert made._files.used_bytes == 6
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert made._files.used_bytes == 0
    assert fetcher.callers == {"key"}


async def test_urls_that_hang_do_not_delay_images_sent_as_bytes(spec: ModelSpec) -> None:
    made, fetcher, _ = preparer(spec)
    hung = [asyncio.ensure_future(made.prepare(request_of(url("hangs")))) for _ in range(50)]
    async with asyncio.timeout(20):
        await asyncio.sleep(0.01)
        assert fetcher.at_once == len(hung)
        media = await made.prepare(request_of(ImagePart(data=b"x"), url("1")))
    assert [image.digest for image in media.images] == [b"x", b"1"]
    for task in hung:
        task.cancel()
    await asyncio.gather(*hung, return_exceptions=True)


async def test_one_that_fails_gives_up_the_others(spec: ModelSpec) -> None:
    made, _, decoder = preparer(spec)
    async with asyncio.timeout(20):
        with pytest.raises(ImageFetchError) as caught:
            await made.prepare(request_of(url("slow"), url("bad"), ImagePart(data=b"slow")))
        assert caught.value.field == "image bad"
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert decoder.cancelled >= 1  # the one with data; the other may not have been decoded yet
        # The places of those that were given up are free again.
        await asyncio.gather(*(made.prepare(request_of(url(str(n)))) for n in range(8)))


async def test_equal_images_of_a_request_are_decoded_once(spec: ModelSpec) -> None:
    made, _, decoder = preparer(spec)
    same = [ImagePart(data=b"same", uuid=str(n), field=f"{n}") for n in range(5)]
    smaller = ImagePart(data=b"same", max_pixels=10_000)
    media = await made.prepare(request_of(*same, ImagePart(data=b"other"), smaller))
    assert sorted(decoder.decoded) == [b"other", b"same", b"same"]
    assert [image.digest for image in media.images] == [b"same"] * 5 + [b"other", b"same"]
    assert [info.uuid for info in media.infos[:5]] == list("01234")


async def test_equal_images_are_decoded_by_the_policy_of_each(spec: ModelSpec) -> None:
    made, _, decoder = preparer(spec)
    images = [ImagePart(data=b"same", rejects_oversized=policy) for policy in (None, False, True)]
    await made.prepare(request_of(*images))
    assert decoder.rejects == [False, True]


async def test_equal_videos_of_a_request_are_decoded_once(spec: ModelSpec) -> None:
    made, _, decoder = preparer(spec)
    frames = tuple(ImagePart(data=data) for data in (b"a", b"b", b"a"))
    videos = [VideoPart(frames=frames, field="video", fps=fps) for fps in (2.0, 2.0, 1.0, 2.0)]
    media = await made.prepare(request_of(*videos))
    assert [image.digest for image in media.images] == [b"a", b"a"] * 4
    assert decoder.videos == 2


async def test_what_the_encoder_cannot_hold_names_its_field_and_figures(spec: ModelSpec) -> None:
    made, _, _ = preparer(spec, tokens=5)
    with pytest.raises(ImageTooLargeError) as caught:
        await made.prepare(request_of(url("1")))
    assert caught.value.field == "image 1"
    assert caught.value.metadata == {"tokens": "5", "max_tokens": "4"}


async def test_a_model_of_one_image_without_videos_refuses_more(spec: ModelSpec) -> None:
    single = replace(spec, video=None, image_policy=replace(spec.image_policy, max_images=1))
    made, fetcher, _ = preparer(single)
    with pytest.raises(TooManyImagesError) as caught:
        await made.prepare(request_of(url("1"), url("2")))
    assert caught.value.field == "spec.messages"
    assert fetcher.most_at_once == 0
    with pytest.raises(UnsupportedParameterError):
        await made.prepare(request_of(VideoPart(frames=(url("1"),), field="video")))
