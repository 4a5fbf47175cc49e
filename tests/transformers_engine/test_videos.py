"""Videos over the transformers backend, where torchvision is installed: the library's processors of videos need it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
import pytest

from inference_service.engine_protocol.messages import (
    EngineConfig,
    EngineRequest,
    PromptMedia,
    PromptSource,
    SamplingParams,
)
from inference_service.transformers_engine import library
from inference_service.transformers_engine.loading import load_core
from tests.support.any_models import build
from tests.support.library_checkpoints import reference_ids, reference_model


pytest.importorskip("torchvision", reason="the library's processors of videos need torchvision")
MAX_TOKENS = 8
TEXT = (
    "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>Describe it"
    "<|vision_start|><|image_pad|><|vision_end|> now<|im_end|>\n<|im_start|>assistant\n"
)


def test_a_video_and_an_image_answer_as_generate(tmp_path: Path) -> None:
    directory = build(tmp_path, "qwen3_5")
    processor = library.load_processor(directory, library.load_config(directory))
    assert library.lacking_for_videos(processor) == ""
    drawn = np.random.default_rng(0)
    clip = drawn.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    image = drawn.integers(0, 256, (40, 64, 3), dtype=np.uint8)
    details = {"fps": 2.0, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3], "duration": 2.0}
    inputs = processor(
        text=[TEXT],
        images=[Image.fromarray(image)],
        videos=[clip.transpose(0, 3, 1, 2).copy()],
        video_metadata=[details | {"height": 64, "width": 64}],
        do_sample_frames=False,
        return_tensors="pt",
    )
    expected = reference_ids(reference_model(directory), inputs, MAX_TOKENS)

    core = load_core(EngineConfig(model_dir=str(directory), device="cpu", cpu_threads=1))
    media = (
        PromptMedia(height=64, width=64, pixel_offset=0, digest=b"v" * 32, frames=4, fps=2.0),
        PromptMedia(height=40, width=64, pixel_offset=clip.nbytes, digest=b"i" * 32),
    )
    source = PromptSource(text=TEXT, media=media, is_guarded=True)
    pixels = memoryview(clip.tobytes() + image.tobytes())
    prompt = core.prepare(source, pixels)
    assert list(prompt.token_ids) == inputs["input_ids"][0].tolist()
    sampling = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0)
    core.add(
        EngineRequest(
            request_id="a",
            prompt_token_ids=tuple(prompt.token_ids),
            source=source,
            sampling=sampling,
        ),
        pixels,
    )
    answer: list[int] = []
    while core.has_work:
        for output in core.step():
            answer.extend(output.token_ids)
    assert answer == list(expected)
