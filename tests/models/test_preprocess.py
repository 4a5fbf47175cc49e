"""Patches are bit-equal to those of transformers' Pillow image processor."""

from __future__ import annotations

import numpy as np
from PIL import Image
import pytest
import torch
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from inference_service.model_spec import ImagePolicy
from inference_service.models import preprocess
from inference_service.models.preprocess import Patchifier


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
POLICIES = {
    "qwen3-vl": ImagePolicy(
        patch_size=16,
        merge_size=2,
        temporal_patch_size=2,
        min_pixels=16384,
        max_pixels=300_000,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
    "qwen2-vl": ImagePolicy(
        patch_size=14,
        merge_size=2,
        temporal_patch_size=2,
        min_pixels=3136,
        max_pixels=200_000,
        mean=CLIP_MEAN,
        std=CLIP_STD,
    ),
    "other numbers": ImagePolicy(
        patch_size=6,
        merge_size=3,
        temporal_patch_size=1,
        min_pixels=700,
        max_pixels=90_000,
        mean=(0.1, 0.7, 0.3),
        std=(0.9, 0.2, 0.6),
    ),
}
SIZES = [
    (1, 1),
    (1, 200),
    (199, 1),
    (5, 900),
    (1500, 8),
    (32, 32),
    (33, 31),
    (28, 56),
    (100, 100),
    (224, 224),
    (480, 640),
    (639, 361),
    (1000, 701),
]


def processor_of(policy: ImagePolicy) -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(
        patch_size=policy.patch_size,
        merge_size=policy.merge_size,
        temporal_patch_size=policy.temporal_patch_size,
        size={"shortest_edge": policy.min_pixels, "longest_edge": policy.max_pixels},
        image_mean=list(policy.mean),
        image_std=list(policy.std),
    )


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_patches_equal_transformers_to_the_bit(name, size):
    policy = POLICIES[name]
    rng = np.random.default_rng(size[0] * 1000 + size[1])
    original = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    expected = processor_of(policy)(images=original)
    height, width = smart_resize(
        size[0],
        size[1],
        factor=policy.pixel_step,
        min_pixels=policy.min_pixels,
        max_pixels=policy.max_pixels,
    )
    resized = np.array(original.resize((width, height), Image.Resampling.BICUBIC))
    patches = Patchifier(policy, torch.device("cpu"))(torch.from_numpy(resized)[None])
    reference = np.asarray(expected["pixel_values"])
    assert patches.dtype == torch.float32
    assert patches.shape == reference.shape
    assert patches.numpy().tobytes() == reference.tobytes()


def test_every_byte_value_in_every_channel():
    policy = POLICIES["qwen2-vl"]
    ramp = np.arange(28 * 28 * 3, dtype=np.int64).reshape(28, 28, 3) % 256
    pixels = ramp.astype(np.uint8)
    expected = processor_of(policy)(images=Image.fromarray(pixels), do_resize=False)
    patches = Patchifier(policy, torch.device("cpu"))(torch.from_numpy(pixels)[None])
    assert patches.numpy().tobytes() == np.asarray(expected["pixel_values"]).tobytes()


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_frames_of_a_video(frames):
    """Each patch holds two frames; what an odd last one lacks is itself. The processor of images repeats each."""
    policy = POLICIES["qwen2-vl"]
    rng = np.random.default_rng(frames)
    pixels = rng.integers(0, 256, (frames, 56, 84, 3), dtype=np.uint8)
    patches = Patchifier(policy, torch.device("cpu"))(torch.from_numpy(pixels))
    patches = patches.view(-1, 24, 3, 2, 14, 14)
    assert len(patches) == (frames + 1) // 2
    for index in range(2 * len(patches)):
        frame = Image.fromarray(pixels[min(index, frames - 1)])
        expected = processor_of(policy)(images=frame, do_resize=False)["pixel_values"]
        expected = torch.from_numpy(np.asarray(expected)).view(24, 3, 2, 14, 14)
        assert torch.equal(patches[index // 2, :, :, index % 2], expected[:, :, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("limit", [1, 15_000, 40_000, 10**9])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_pieces_are_bounded_and_give_the_same(monkeypatch, frames, limit, dtype):
    """A piece has as many rows of tokens of one patch in time as fit, one at least."""
    policy = POLICIES["qwen2-vl"]
    rng = np.random.default_rng(frames)
    pixels = torch.from_numpy(rng.integers(0, 256, (frames, 5 * 28, 84, 3), dtype=np.uint8))
    patchify = Patchifier(policy, torch.device("cpu"))
    whole = patchify(pixels)
    sizes = []

    def cut(self, some):
        sizes.append(real(self, some).numel())
        return real(self, some)

    real = Patchifier._cut
    monkeypatch.setattr(Patchifier, "_cut", cut)
    monkeypatch.setattr(preprocess, "PIECE_VALUES", {"cpu": limit})
    pieces = patchify.pieces(pixels, dtype)
    try:
        while True:
            next(pieces)
            assert len(sizes) == 1, "there is a pause behind each piece"
            assert sizes.pop() <= max(limit, 28 * 84 * 3 * 2)
    except StopIteration as end:
        found = end.value
    assert found.dtype == dtype
    assert torch.equal(found, whole.to(dtype))
