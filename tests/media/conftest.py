"""The image policy of Qwen3-VL."""

from __future__ import annotations

import pytest

from inference_service.model_spec import ImagePolicy


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
