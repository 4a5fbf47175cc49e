"""The image policy of Qwen3-VL, and decoders whose workers end with the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from inference_service.model_spec import ImagePolicy
from tests.media.decoding import Decoding


@pytest.fixture(scope="session")
def policy() -> ImagePolicy:
    return ImagePolicy(
        patch_size=16,
        merge_size=2,
        temporal_patch_size=2,
        min_pixels=65536,
        max_pixels=16777216,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Decoding]]:
    made: list[Decoding] = []

    def decoding(*args: Any, **options: Any) -> Decoding:
        made.append(Decoding(*args, **options))
        return made[-1]

    yield decoding
    for one in made:
        one.decoder.close()
