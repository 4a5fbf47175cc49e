"""What a processor is given, and how many tokens each image has, with a processor that only notes what it gets."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from inference_service.engine_protocol.messages import MediaLayout, PromptMedia, PromptSource
from inference_service.errors import InvalidArgumentError
from inference_service.transformers_engine.prompts import PromptMaker


IMAGE, VIDEO = 7, 8


class NotingProcessor:
    """Puts `<i>` for each token of an image, as a text or between others."""

    def __init__(self, put: Sequence[str] = (), ids: Sequence[int] = (), **made: Any) -> None:
        self.tokenizer = SimpleNamespace(
            added_tokens_decoder={},
            bos_token=None,
            convert_ids_to_tokens=lambda ids: ["<i>" for _ in ids],
        )
        self.video_processor = SimpleNamespace(patch_size=8, merge_size=2)
        self.options: dict[str, Any] = {}
        self._put, self._ids, self._made = put, ids, made

    def _process_images(self, images: Any, **options: Any) -> tuple[Any, list[str]]:
        del images, options
        return {}, list(self._put)

    def __call__(self, **options: Any) -> dict[str, Any]:
        self.options = options
        if "images" in options:
            self._process_images(options["images"])
        return {"input_ids": torch.tensor([list(self._ids)]), **self._made}


def maker(processor: NotingProcessor) -> PromptMaker:
    return PromptMaker(processor, SimpleNamespace(image_token_id=IMAGE, video_token_id=VIDEO))


def test_videos_are_given_as_the_frames_that_the_caller_chose() -> None:
    """Nothing is sampled or dropped again, and images and videos keep their order in the layout."""
    frames = np.random.default_rng(1).integers(0, 256, (4, 6, 8, 3), dtype=np.uint8)
    image = np.full((5, 3, 3), 9, dtype=np.uint8)
    media = (
        PromptMedia(height=6, width=8, pixel_offset=0, digest=b"v" * 32, frames=4, fps=2.0),
        PromptMedia(height=5, width=3, pixel_offset=frames.nbytes, digest=b"i" * 32),
    )
    processor = NotingProcessor(
        ["<i><i>"],
        [1, VIDEO, VIDEO, VIDEO, VIDEO, IMAGE, IMAGE],
        video_grid_thw=torch.tensor([[2, 4, 2]]),
    )
    source = PromptSource(text="a video and an image", media=media)
    layout = maker(processor).prepare(source, frames.tobytes() + image.tobytes()).layout
    [clip], [details] = processor.options["videos"], processor.options["video_metadata"]
    assert np.array_equal(clip, frames.transpose(0, 3, 1, 2))
    assert (details["fps"], details["total_num_frames"], details["duration"]) == (2.0, 4, 2.0)
    assert details["frames_indices"] == [0, 1, 2, 3]
    assert processor.options["do_sample_frames"] is False
    [given] = processor.options["images"]
    assert np.array_equal(np.asarray(given), image)
    assert layout.media == (
        MediaLayout(height=32, width=16, num_tokens=4),
        MediaLayout(height=5, width=3, num_tokens=2),
    )


@pytest.mark.parametrize(
    ("put", "ids", "counts"),
    [
        (["<i>", "<i><i><i>"], [1, IMAGE, 2, IMAGE, IMAGE, IMAGE, 3], [1, 3]),
        (["<i>", "<i><i><i>"], [1, IMAGE, IMAGE, IMAGE, IMAGE, 3], [1, 3]),  # they touch
        (["[<i>]", "<a><i><b><i><i>"], [IMAGE, 4, IMAGE, 5, IMAGE, IMAGE], [1, 3]),  # in pieces
        ([], [IMAGE, 2, IMAGE, IMAGE, IMAGE], [1, 3]),  # an older processor: by runs
        ([], [IMAGE, IMAGE, IMAGE, IMAGE, IMAGE], [3, 2]),  # nobody knows: equal parts
        (["<i>", "<i>"], [IMAGE, 2, IMAGE, IMAGE, IMAGE], [1, 3]),  # what was told does not add up
    ],
)
def test_tokens_of_each_image(put: list[str], ids: list[int], counts: list[int]) -> None:
    media = tuple(
        PromptMedia(height=1, width=1, pixel_offset=3 * i, digest=bytes([i]) * 32) for i in (0, 1)
    )
    made = maker(NotingProcessor(put, ids)).prepare(PromptSource(text="x", media=media), b"abcdef")
    assert [one.num_tokens for one in made.layout.media] == counts


def test_faults_of_a_processor_are_refusals_without_its_words() -> None:
    class Failing(NotingProcessor):
        def __call__(self, **options: Any) -> dict[str, Any]:
            raise ValueError(f"your prompt {options['text']} is bad")

    with pytest.raises(InvalidArgumentError, match="processor refuses this prompt") as refusal:
        maker(Failing()).prepare(PromptSource(text="a secret"), b"")
    assert "secret" not in str(refusal.value)


def test_the_last_prompts_are_kept() -> None:
    processor = NotingProcessor(ids=[1, 2])
    prompts = maker(processor)
    first = prompts.prepare(PromptSource(text="first"), b"")
    assert prompts.prepare(PromptSource(text="first"), b"") is first
    for number in range(16):
        prompts.prepare(PromptSource(text=str(number)), b"")
    assert prompts.prepare(PromptSource(text="first"), b"") is not first
