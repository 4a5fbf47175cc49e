"""Callers share the workers that decode images: the many images of one wait in line, not in front of the workers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
import gc
import io
from typing import Any
import weakref

from PIL import Image
import pytest

from inference_service.media.pool import WorkerPool
from inference_service.media.prepare import MediaPreparer
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from tests.grpc_api.asking import image_part, spec_of, until


WORKERS = 1
AT_ONCE = 4 * WORKERS
SPARE = WORKERS


def image_of(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


async def test_one_caller_leaves_room_for_the_image_of_the_next(
    open_service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await open_service(media_workers=WORKERS, max_images=8)
    begun: list[bytes] = []
    go_on = asyncio.Event()
    run = WorkerPool.run

    async def held(pool: WorkerPool, job: Any, files: Sequence[bytes], **options: Any) -> Any:
        begun.append(bytes(files[0]))
        await go_on.wait()
        return await run(pool, job, files, **options)

    monkeypatch.setattr(WorkerPool, "run", held)

    def ask(caller: str, numbers: Sequence[int]) -> asyncio.Future[Any]:
        parts = [image_part(image_of(number)) for number in numbers]
        metadata = (("authorization", f"Bearer {caller}"),)
        return asyncio.ensure_future(service.create(spec_of(*parts, "?"), metadata=metadata))

    calls = [ask("greedy", range(first, first + 8)) for first in (0, 8, 16)]
    await until(lambda: len(begun) >= AT_ONCE - SPARE)
    await asyncio.sleep(0.2)
    assert len(begun) == AT_ONCE - SPARE, "more images at once than a caller may have"
    calls.append(ask("neighbour", [200]))
    await until(lambda: image_of(200) in begun)
    assert len(begun) <= AT_ONCE
    go_on.set()
    await asyncio.gather(*calls)


async def test_pixels_are_freed_when_the_engine_has_them(
    service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their room is free for other images then, while the answer may take minutes."""
    kept: list[weakref.ref[Any]] = []
    prepare = MediaPreparer.prepare

    async def watched(preparer: MediaPreparer, *asked: Any) -> Any:
        media = await prepare(preparer, *asked)
        kept.extend(weakref.ref(image.pixels) for image in media.images)
        return media

    monkeypatch.setattr(MediaPreparer, "prepare", watched)
    spec = spec_of(
        image_part(image_of(1)), image_part(image_of(2)), "?", sampling={"max_tokens": 1000}
    )
    events = service.chat.StreamChatCompletion(
        chat_pb.StreamChatCompletionRequest(spec=spec), timeout=60
    )
    async for event in events:
        if event.WhichOneof("event") != "started":
            break
    gc.collect()
    assert len(kept) == 2
    assert [ref() for ref in kept] == [None, None]
    events.cancel()
