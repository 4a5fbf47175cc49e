"""What a model takes, and what a cache holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference_service.families.footprint import (
    MIN_CONTEXT_TOKENS,
    Footprint,
    capacity,
    footprint,
    largest_media_tokens,
)
from inference_service.families.registry import load_spec
from tests.support.published_configs import published_files, write_files


MODEL = Footprint(
    family="qwen3_vl",
    parts=(("vision", 5), ("language", 95)),
    dtype="float16",
    kv_bytes_per_token=10,
    window_tokens=4096,
)


@pytest.mark.parametrize(("dtype", "value_bytes"), [("float32", 4), ("float16", 2)])
def test_published_model(tmp_path: Path, dtype: str, value_bytes: int) -> None:
    size = footprint(load_spec(write_files(tmp_path, published_files())), dtype)
    assert size.parameter_count == 4_437_815_808
    assert size.weight_bytes == size.parameter_count * value_bytes
    assert size.kv_bytes_per_token == 2 * 36 * 8 * 128 * value_bytes
    assert size.window_tokens == 262144


@pytest.mark.parametrize(
    ("cache_bytes", "asked", "expected"),
    [
        (40960, None, (4096, 4096, 1, True)),
        (100_000, None, (10_000, 4096, 2, True)),
        (100_000, 1000, (10_000, 1000, 10, True)),
        (MIN_CONTEXT_TOKENS * 10, None, (MIN_CONTEXT_TOKENS, MIN_CONTEXT_TOKENS, 1, True)),
        (MIN_CONTEXT_TOKENS * 10 - 1, None, (2047, 2047, 1, False)),
        (40959, 4096, (4095, 4095, 1, False)),  # what the operator asked for, or nothing
        (1000, 100, (100, 100, 1, True)),
        (9, None, (0, 0, 0, False)),
        (-1, None, (0, 0, 0, False)),
    ],
)
def test_capacity(
    cache_bytes: int, asked: int | None, expected: tuple[int, int, int, bool]
) -> None:
    room = capacity(MODEL, cache_bytes, asked)
    assert (room.cache_tokens, room.context_tokens, room.full_requests, room.fits) == expected


@pytest.mark.parametrize(
    ("name", "encoder_cache", "tokens"),
    [
        ("Qwen2-VL-7B-Instruct", 40_000, 40_000),  # a whole video
        ("Qwen3-VL-8B-Instruct", 40_000, 16_384),  # an image; of videos a pair of frames at a time
        ("Qwen3-VL-8B-Instruct", 900, 900),
        ("Qwen-VL-Chat", 40_000, 2048),  # as many images as a step has tokens
    ],
)
def test_the_most_that_a_step_encodes(name: str, encoder_cache: int, tokens: int) -> None:
    spec = load_spec(Path("tests/golden/configs") / name)
    assert largest_media_tokens(spec, 2048, encoder_cache) == tokens
