"""The embeddings of an image in the encoder cache keep no other tensor alive, whatever the family's tower returns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from inference_service.engine.core import EngineCore
from inference_service.engine_protocol.messages import (
    EngineConfig,
    EngineRequest,
    ImageSpan,
    SamplingParams,
)
from inference_service.families.registry import FAMILIES, load_spec
from inference_service.model_spec import ModelSpec
from tests.support import glm_4v
from tests.support.tiny_qwen_vl import build_checkpoint


KEYS = (b"first", b"second")


@pytest.fixture(params=FAMILIES)
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "qwen_vl":
        built: Path = request.getfixturevalue("qwen_vl_b")
        return built
    if request.param == "glm_4v":
        return glm_4v.build_checkpoint(tmp_path)
    return build_checkpoint(tmp_path, family=request.param)


def request_with_two_images(spec: ModelSpec) -> tuple[EngineRequest, bytes]:
    policy = spec.image_policy
    side = policy.square_side or 4 * policy.pixel_step
    grid = (1, side // policy.patch_size, side // policy.patch_size)
    num_tokens = policy.tokens_of(grid)
    images = tuple(
        ImageSpan(
            key=key,
            start=1 + index * num_tokens,
            num_tokens=num_tokens,
            grid=grid,
            height=side,
            width=side,
            pixel_offset=index * 3 * side**2,
        )
        for index, key in enumerate(KEYS)
    )
    request = EngineRequest(
        request_id="r",
        prompt_token_ids=(0, *[spec.image_token_id] * (2 * num_tokens), 0),
        images=images,
        sampling=SamplingParams(max_tokens=2),
    )
    return request, bytes(3 * side**2) + b"\xff" * (3 * side**2)


def cached(core: EngineCore) -> Sequence[torch.Tensor]:
    found = [core._runner._encoder_cache.get(key) for key in KEYS]
    return [embedding for embedding in found if embedding is not None]


def test_images_of_one_pass_are_kept_apart(directory: Path) -> None:
    spec = load_spec(directory)
    core = EngineCore(EngineConfig(model_dir=str(directory), num_kv_pages=64, cpu_threads=1))
    core.add(*request_with_two_images(spec))
    while len(cached(core)) < 2:  # in pieces, of which a slow machine computes few in a step
        assert core.has_work
        core.step()
    embeddings = cached(core)
    for embedding in embeddings:
        assert embedding.untyped_storage().nbytes() == embedding.nbytes
    assert not torch.equal(*embeddings)
