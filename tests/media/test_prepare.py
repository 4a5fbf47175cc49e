"""All media of a request together: bounds, order, and what happens to the rest when one fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
import contextlib
from dataclasses import replace
from pathlib import Path

import pytest

from inference_service.domain import ImagePart, TextPart, VideoPart
from inference_service.errors import (
    ImageFetchError,
    ImageTooLargeError,
    InvalidImageError,
    ServiceError,
    TooManyImagesError,
    UnsupportedParameterError,
)
from inference_service.families.registry import load_spec
from inference_service.media.turn import set_turn
from inference_service.model_spec import ModelSpec
from tests.media.preparing import preparer, request_of, url
from tests.support.published_configs import published_files, write_files


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    directory: Path = tmp_path_factory.mktemp("published")
    return load_spec(write_files(directory, published_files()))


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


@pytest.mark.parametrize("kind", [ImageFetchError, InvalidImageError])
async def test_one_that_fails_gives_up_the_others(
    spec: ModelSpec, kind: type[ServiceError]
) -> None:
    made, fetcher, decoder = preparer(spec)
    broken, other = ("bad", "hangs") if kind is ImageFetchError else ("broken", "slow")
    async with asyncio.timeout(20):
        with pytest.raises(kind) as caught:
            await made.prepare(request_of(url(other), url(broken), ImagePart(data=b"slow")))
        assert caught.value.field == f"image {broken}"
        for _ in range(3):
            await asyncio.sleep(0)
        assert (fetcher.at_once, decoder.at_once) == (0, 0)
        assert decoder.cancelled == (0 if kind is ImageFetchError else 1)  # equal ones once
        assert made._files.used_bytes == 0
        # The places of those that were given up are free again.
        await asyncio.gather(*(made.prepare(request_of(url(str(n)))) for n in range(8)))


async def test_no_image_takes_its_turn_before_all_files_are_there(spec: ModelSpec) -> None:
    made, fetcher, decoder = preparer(spec)
    turns: list[int] = []

    @contextlib.asynccontextmanager
    async def turn() -> AsyncIterator[None]:
        turns.append(fetcher.at_once)
        yield

    set_turn(turn)
    video = VideoPart(frames=tuple(map(url, "abcd")), field="video")
    inline = ImagePart(data=b"inline")
    waiting = asyncio.ensure_future(made.prepare(request_of(inline, video, url("hangs"))))
    while fetcher.at_once != 1:  # noqa: ASYNC110 - nobody could set an event
        await asyncio.sleep(0.002)
    assert (turns, decoder.decoded, decoder.videos) == ([], [], 0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await made.prepare(request_of(inline, video, url("1"), url("2")))
    assert turns == [0] * 4


async def test_requests_with_half_of_their_files_never_wait_for_each_other(
    spec: ModelSpec,
) -> None:
    """There is memory for two files and one turn at a time; each request needs three files."""
    made, _, _ = preparer(spec, file_bytes=6)
    place = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def turn() -> AsyncIterator[None]:
        async with place:
            yield

    set_turn(turn)
    requests = [request_of(*(url(f"{name}{number}") for number in range(3))) for name in "abcd"]
    async with asyncio.timeout(20):
        prepared = await asyncio.gather(*(made.prepare(request, "key") for request in requests))
    assert [len(media.images) for media in prepared] == [3] * 4
    assert made._files.used_bytes == 0


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
