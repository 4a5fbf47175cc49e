"""Frames of videos: their size against transformers' own rules, their pieces, and what is refused."""

from __future__ import annotations

from dataclasses import replace
import io

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pytest
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as of_images
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as of_qwen3_videos

from inference_service.errors import ImageTooLargeError, InvalidImageError
from inference_service.media.decode import decode_video
from inference_service.media.geometry import video_size
from inference_service.media.images import DecodeLimits, FrameSpec
from inference_service.model_spec import VideoPolicy


QWEN2 = VideoPolicy(min_pixels=100352, max_pixels=602112, total_pixels=12845056)
QWEN3 = VideoPolicy(min_pixels=4096, max_pixels=25165824, timestamps=True)
LIMITS = DecodeLimits()
side, frame_count = st.integers(1, 5000), st.integers(1, 300)


@given(frame_count, side, side)
def test_size_as_qwen3_vl_has_it(policy, frames, height, width):
    arguments = {"min_pixels": QWEN3.min_pixels, "max_pixels": QWEN3.max_pixels}
    try:
        wanted = of_qwen3_videos(max(frames, 2), height, width, factor=32, **arguments)
    except ValueError:
        with pytest.raises(InvalidImageError):
            video_size(frames, height, width, policy, QWEN3)
        return
    assert video_size(frames, height, width, policy, QWEN3) == wanted


@given(frame_count, side, side)
def test_size_as_qwen2_vl_has_it(policy, frames, height, width):
    policy = replace(policy, patch_size=14)
    if max(height, width) > 200 * min(height, width):
        return
    # An even share of the whole, never above a frame's own limit, never hardly above its least area.
    most = max(min(602112, 12845056 * 2 // frames), int(100352 * 1.05))
    wanted = of_images(height, width, factor=28, min_pixels=100352, max_pixels=most)
    assert video_size(frames, height, width, policy, QWEN2) == wanted


def frames_of(number: int, size: tuple[int, int] = (96, 64)) -> list[np.ndarray]:
    return [
        np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
        for seed in range(number)
    ]


def files_of(frames: list[np.ndarray]) -> list[bytes]:
    files = []
    for frame in frames:
        out = io.BytesIO()
        Image.fromarray(frame).save(out, "PNG")
        files.append(out.getvalue())
    return files


def decoded(files: list[bytes], policy, video: VideoPolicy, fps: float = 2.0):
    spec = FrameSpec(policy=policy, video=video, fps=fps)
    return decode_video(files, [f"f{i}" for i in range(len(files))], spec, LIMITS)


SAME_SIZE = VideoPolicy(min_pixels=1, max_pixels=10**9)


def test_frames_of_equal_size_are_one_piece(policy):
    frames = frames_of(5)
    video = replace(SAME_SIZE, tokens_per_second=2.0)
    [piece] = decoded(files_of(frames), policy, video, fps=8.0)
    assert piece.pixels == b"".join(frame.tobytes() for frame in frames)
    assert (piece.frames, piece.grid, piece.num_tokens) == (5, (3, 6, 4), 3 * 3 * 2)
    assert (piece.height, piece.width, piece.is_video) == (96, 64, True)
    assert piece.time_step == 2.0 * 2 / 8.0


def test_a_piece_for_each_temporal_patch(policy):
    frames = frames_of(5)
    pieces = decoded(files_of(frames), policy, replace(SAME_SIZE, timestamps=True))
    assert [piece.frames for piece in pieces] == [2, 2, 1]
    assert all(piece.grid == (1, 6, 4) and piece.time_step == 1.0 for piece in pieces)
    assert b"".join(piece.pixels for piece in pieces) == b"".join(f.tobytes() for f in frames)
    assert len({piece.digest for piece in pieces}) == 3


def test_what_the_cache_must_tell_apart(policy):
    """Equal pixels at another pace stand at other positions; the same twice is one entry."""
    files = files_of(frames_of(2))
    paced = replace(SAME_SIZE, tokens_per_second=2.0)
    digests = [decoded(files, policy, paced, fps)[0].digest for fps in (1.0, 2.0, 2.0)]
    assert digests[0] != digests[1] == digests[2]


def test_all_frames_are_resized_alike(policy):
    files = files_of(frames_of(3, (200, 300)))
    [piece] = decoded(files, policy, replace(SAME_SIZE, max_pixels=64 * 96 * 4))
    single = Image.open(io.BytesIO(files[2])).resize((piece.width, piece.height), 3)
    assert piece.pixels[-piece.width * piece.height * 3 :] == np.asarray(single).tobytes()
    assert piece.width * piece.height * 4 <= 64 * 96 * 4


def test_refusals(policy):
    files = files_of(frames_of(2))
    with pytest.raises(InvalidImageError, match="same size") as caught:
        decoded([*files, *files_of(frames_of(1, (64, 96)))], policy, SAME_SIZE)
    assert caught.value.field == "f2"
    with pytest.raises(InvalidImageError, match="cut off") as caught:
        decoded([files[0], files[1][:50]], policy, SAME_SIZE)
    assert caught.value.field == "f1"
    with pytest.raises(ImageTooLargeError) as too_large:
        decode_video(
            files,
            ["a", "b"],
            FrameSpec(policy=policy, video=SAME_SIZE, fps=2),
            DecodeLimits(max_bytes=9),
        )
    assert too_large.value.field == "a"
